"""`layersweep export`: a run's overlay merged into its base, an ordinary Hugging Face folder."""

import difflib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import load_spec
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.config import PretrainedModel
from layersweep.policies.model.checkpoint import HEAD, head_is_tied, stored_tensors
from layersweep.policies.model.expert_weights import as_stored
from layersweep.policies.selection import parse_run_name
from layersweep.rollout.data.locations import is_local
from layersweep.workers.startup.gguf_model import gguf_folder, is_gguf
from layersweep.workers.startup.tiny_model import cache_folder
from layersweep.workers.storage.files import copy_here, find_files, resolve_uri
from layersweep.workers.storage.retries import retried
from layersweep.workers.storage.tables import COMPOSITION

if TYPE_CHECKING:  # imported where weights are moved, so that errors come at once
    import torch

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.h5")
WEIGHTS += ("*.msgpack", "*.onnx", "*.gguf")
"""Files of a base that are weights in some format; the rest (tokenizer, configs, licence) is copied."""


@dataclass(frozen=True)
class OverlayFile:
    """File of one run's trained parameters."""

    selection: str
    seed: int
    file: str
    """Path or URI of its model.safetensors."""


def export(sweep: str, selection: str, target: str, seed: int | None = None) -> list[str]:
    """Write `target`, a folder that transformers and vLLM load; returns the paths of its files.

    The model is the one the run's engine served: every weight in the dtype that the run trained in. The folder appears
    at once and whole, or not at all.

    Raises:
        SpecError: no such sweep or run; several seeds and none named; a target that is not empty; a base that is gone,
            is not in safetensors, or lacks what the overlay replaces.
    """
    folder = Path(target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError([f"{folder} exists already; name a new folder"])
    members = composed_stacks(sweep).get(selection) or {selection: 1.0}
    overlays = {member: find_overlay(sweep, member, seed) for member in members}
    base = base_folder(load_spec(f"{sweep.rstrip('/')}/sweep.yaml"))
    from layersweep.policies.model.stored_weights import StoredWeights
    from layersweep.policies.model.variant_weights import stack_weights

    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with tempfile.TemporaryDirectory(dir=scratch) as fetched:
            files = {
                str(local_overlay(overlay, Path(tempfile.mkdtemp(dir=fetched)))): members[name]
                for name, overlay in overlays.items()
            }
            weights = stack_weights(files, StoredWeights(str(base)))
        merge(base, weights, scratch)
        scratch.chmod(0o755)
        scratch.replace(folder)
    except BaseException:
        shutil.rmtree(scratch)
        raise
    return sorted(str(path) for path in folder.iterdir())


def composed_stacks(sweep: str) -> dict[str, dict[str, float]]:
    """Return the stacks in composition.parquet, by name: the members of each with the factor of their changes.

    Raises:
        SpecError: the table cannot be read.
    """
    try:
        table = COMPOSITION.read(f"{sweep.rstrip('/')}/{COMPOSITION.name}.parquet")
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise SpecError([f"{sweep}: {COMPOSITION.name}.parquet: {error}"]) from error
    rows = table[table["strength"].notna()].to_dict("records")
    return {row["stack"]: dict.fromkeys(row["members"], float(row["strength"])) for row in rows}


def find_overlay(sweep: str, selection: str, seed: int | None) -> OverlayFile:
    """Return the overlay of a selection in a sweep's folder.

    Raises:
        SpecError: it is not there; there are several seeds, and none was named.
    """
    if selection == "base":
        raise SpecError(["base: nothing was trained; the base is the model that the sweep's spec names"])
    found = overlays(sweep)
    if not found:
        raise SpecError([f"{sweep}: no overlays there yet; a run leaves its own when it completes"])
    own = [overlay for overlay in found if overlay.selection == selection]
    if not own:
        names = sorted({overlay.selection for overlay in found})
        near = difflib.get_close_matches(selection, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(names)}"
        raise SpecError([f"{selection}: {sweep} has no overlay of it. {hint}"])
    seeds = [overlay.seed for overlay in own]
    if seed is None and len(own) > 1:
        raise SpecError([f"{selection} was trained with seeds {', '.join(map(str, seeds))}: choose one with --seed"])
    if seed is not None and seed not in seeds:
        raise SpecError([f"{selection} was not trained with seed {seed}, but with {', '.join(map(str, seeds))}"])
    return own[0 if seed is None else seeds.index(seed)]


def overlays(sweep: str) -> list[OverlayFile]:
    """Return all overlays in a sweep's folder, by selection and seed.

    Raises:
        SpecError: the folder cannot be listed.
    """
    try:
        filesystem, folder = resolve_uri(f"{sweep.rstrip('/')}/overlays")
        paths = find_files(filesystem, folder, depth=2)
    except (OSError, ValueError) as error:
        raise SpecError([f"{sweep!r}: {getattr(error, 'strerror', None) or error}"]) from error
    found = []
    for path in paths:
        run, _, name = path.partition("/")
        if name == "model.safetensors" and (parsed := parse_run_name(run)):
            found.append(OverlayFile(*parsed, filesystem.unstrip_protocol(f"{folder}/{path}")))
    return sorted(found, key=lambda overlay: (overlay.selection, overlay.seed))


def base_folder(spec: SweepSpec) -> Path:
    """Return the folder with the base's weights: local, from the hub (downloaded if need be), or the tiny model's
    cache.

    Raises:
        SpecError: it is not there. The tiny model is not made anew: made elsewhere it may differ in the last bits.
    """
    if not isinstance(spec.model, PretrainedModel):
        folder = cache_folder(spec.model, spec.task)
        if not folder.is_dir():
            raise SpecError(
                [f"model: the tiny base that {spec.name} started from is not in this machine's cache, {folder}"]
            )
        return folder
    if is_gguf(spec.model.path):
        return gguf_folder(spec.model.path)
    folder = Path(spec.model.path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", spec.model.path):
        raise SpecError([f"model.path: {folder} is not a Hugging Face model folder: it has no config.json"])
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    unwanted = [pattern for pattern in WEIGHTS if "safetensors" not in pattern]
    try:
        return Path(snapshot_download(spec.model.path, revision=spec.model.revision, ignore_patterns=unwanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        name = type(error).__name__
        raise SpecError([f"model.path: neither a folder here nor to be had from the model hub ({name})"]) from error


def merge(base: Path, overlay: "dict[str, torch.Tensor]", target: Path) -> None:
    """Write base and overlay into `target`, shard by shard, and copy what else the base's folder holds.

    Raises:
        SpecError: the base has no safetensors, or lacks a tensor of the overlay, or has it in another shape.
    """
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    shards = _shards(base)
    dtype = next(iter(overlay.values())).dtype
    config["tie_word_embeddings"] = bool(head_is_tied(stored_tensors(base)))
    tied = {HEAD} if config["tie_word_embeddings"] else set()
    left, weight_map, total = as_stored({name: overlay[name] for name in overlay.keys() - tied}), {}, 0
    for shard in shards:
        tensors = {}
        for name, tensor in _tensors(shard):
            if name in tied:  # a copy of the embeddings, which may have been trained
                continue
            new = left.pop(name, None)
            if new is not None and new.shape != tensor.shape:
                raise SpecError([f"{name} is {list(new.shape)} in the overlay, {list(tensor.shape)} in {base}"])
            tensor = tensor if new is None else new
            tensors[name] = (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
            weight_map[name] = shard.name
            total += tensors[name].nbytes
        save_file(tensors, target / shard.name, metadata={"format": "pt"})
    if left:
        raise SpecError([f"{base} has no {', '.join(sorted(left)[:3])}: it is not the model that this run trained"])
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for path in base.iterdir():
        if path.is_file() and not path.name.startswith(".") and not any(path.match(pattern) for pattern in WEIGHTS):
            shutil.copyfile(path, target / path.name)
    named = {key for key in ("dtype", "torch_dtype") if key in config} or {"dtype"}
    config |= dict.fromkeys(named, str(dtype).removeprefix("torch."))
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _shards(base: Path) -> list[Path]:
    """Return the base's weight files, in order."""
    index = base / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if absent := [name for name in names if not (base / name).is_file()]:
            raise SpecError([f"{base} lacks {', '.join(absent)}, which its index names"])
        return [base / name for name in names]
    if (base / "model.safetensors").is_file():
        return [base / "model.safetensors"]
    raise SpecError([f"{base} has no model.safetensors; weights in other formats are not read"])


def _tensors(shard: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    from safetensors import safe_open

    with safe_open(shard, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  not a mapping
            yield name, file.get_tensor(name)


def local_overlay(overlay: OverlayFile, scratch: Path) -> Path:
    """Return the file itself where it is local, else a copy of it in `scratch`.

    Raises:
        SpecError: it cannot be copied.
    """
    filesystem, inner = resolve_uri(overlay.file)
    if is_local(filesystem):
        return Path(inner)
    copy = scratch / "model.safetensors"
    try:
        retried(f"copying {overlay.file}", partial(copy_here, filesystem, inner, str(copy)))
    except OSError as error:
        raise SpecError([f"{overlay.file}: cannot be copied here: {error}"]) from error
    return copy
