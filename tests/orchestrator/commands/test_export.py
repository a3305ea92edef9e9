"""`layersweep export`: the folder it writes is the base with the overlay's tensors in place, however it is sharded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from layersweep.cli import DEMO, main
from layersweep.orchestrator.commands.export import OverlayFile, export, local_overlay, merge, overlays
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.workers.startup.tiny_model_training import character_tokenizer
from layersweep.workers.storage import retries
from layersweep.workers.storage.tables import COMPOSITION

TOKENS = torch.tensor([[3, 7, 1, 30, 12, 5]])


@pytest.fixture
def sweep(tmp_path, model_folder):
    """A sweep's folder: base with a tokenizer, overlays of layer 1 (seeds 0 and 3) and of full."""
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    character_tokenizer("0123456789").save_pretrained(base)
    (base / "training_args.bin").write_bytes(b"a pickle, not to be copied")
    torch.manual_seed(1)
    for name, picked in (
        ("layer-01-seed0", "model.layers.1."),
        ("layer-01-seed3", "model.layers.1."),
        ("full-seed0", ""),
    ):
        weights = {k: v + 0.1 * torch.randn_like(v) for k, v in load_file(base / "model.safetensors").items()}
        (tmp_path / "sweep" / "overlays" / name).mkdir(parents=True)
        overlay = {k: v for k, v in weights.items() if k.startswith(picked)}
        save_file(overlay, tmp_path / "sweep" / "overlays" / name / "model.safetensors")
    spec = yaml.safe_load(Path(DEMO).read_text()) | {"model": str(base), "seeds": [0]}
    (tmp_path / "sweep" / "sweep.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path / "sweep"


def expected(base, overlay):
    """Log-probabilities of a transformers model whose tensors are replaced by hand."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_state_dict(load_file(overlay / "model.safetensors"), strict=False)
    return logprobs(model)


@torch.no_grad()
def logprobs(model):
    return model.eval()(TOKENS).logits.float().log_softmax(-1)


def test_a_stack_is_the_base_and_what_its_members_changed(sweep, tmp_path):
    """At half strength: half way from the base's weights to the run's."""
    row = {"stack": "stack-01-x0.5", "rule": "given", "members": ["layer-01"], "strength": 0.5, "split": "selection"}
    with (sweep / "composition.parquet").open("wb") as file:
        COMPOSITION.write(COMPOSITION.frame([row]), file)
    export(str(sweep), "stack-01-x0.5", str(tmp_path / "out"), 3)
    base = load_file(tmp_path / "base" / "model.safetensors")
    run = load_file(sweep / "overlays" / "layer-01-seed3" / "model.safetensors")
    for name, weight in load_file(tmp_path / "out" / "model.safetensors").items():
        wanted = (base[name] + run[name]) / 2 if name in run else base[name]
        torch.testing.assert_close(weight, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("selection", "seed"), [("layer-01", 0), ("layer-01", 3), ("full", None)])
def test_log_probabilities_are_those_of_the_run(sweep, tmp_path, selection, seed):
    written = export(str(sweep), selection, str(tmp_path / "out"), seed)
    assert {path.rsplit("/", 1)[1] for path in written} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not any(report.values())  # no missing, unexpected or mismatched keys
    overlay = sweep / "overlays" / f"{selection}-seed{seed or 0}"
    assert torch.equal(logprobs(model), expected(tmp_path / "base", overlay))
    base = logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32))
    assert (logprobs(model) - base).abs().max() > 0.01
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("12")["input_ids"] == [3, 4]


def greedy(prompts, *how):
    """Tokens of each answer, and the log-probabilities of all one after another, of a vLLM in its own process."""
    command = [sys.executable, "-m", "tests.helpers.greedy", json.dumps(prompts), *map(str, how)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    tokens, given = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    return list(tokens), np.concatenate(given)


@torch.no_grad()
def plain_logprobs(folder, prompts, tokens):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt, answer in zip(prompts, tokens, strict=True):
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        found.append(torch.log_softmax(logits, -1)[range(len(answer)), answer].numpy())
    return np.concatenate(found)


@pytest.mark.slow
def test_vllm_loads_the_folder_and_gives_what_the_engine_of_the_sweep_gave(sweep, tmp_path):
    """An ordinary vLLM on the folder, the sweep's engine with the overlay over the base, and transformers: the same
    tokens, log-probabilities within 1e-5, and far from the base's."""
    out, prompts = tmp_path / "out", [[3, 7, 2, 30, 12, 5], list(range(2, 32)), *([k] for k in range(9, 13))]
    export(str(sweep), "layer-01", str(out), seed=0)
    tokens, exported = greedy(prompts, "plain", out)
    assert exported.size >= 20
    overlay = sweep / "overlays" / "layer-01-seed0" / "model.safetensors"
    own_tokens, own = greedy(prompts, "overlay", tmp_path / "base", overlay)
    assert tokens == own_tokens
    assert np.abs(exported - own).max() < 1e-5
    assert np.abs(exported - plain_logprobs(out, prompts, tokens)).max() < 1e-5
    assert np.abs(exported - plain_logprobs(tmp_path / "base", prompts, tokens)).max() > 1e-2


def test_shards_and_their_index(sweep, tmp_path):
    base, overlay = tmp_path / "base", load_file(sweep / "overlays" / "layer-01-seed0" / "model.safetensors")
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    for source, target in ((base, single), (sharded, tmp_path / "out")):
        target.mkdir()
        merge(source, overlay, target)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    merged = {
        name: tensor for path in (tmp_path / "out").glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    assert index["weight_map"].keys() == merged.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged.values())
    whole = load_file(single / "model.safetensors")
    assert whole.keys() == merged.keys() and all(torch.equal(whole[name], merged[name]) for name in whole)
    assert logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "out")).equal(
        logprobs(AutoModelForCausalLM.from_pretrained(single))
    )


def test_everything_in_the_dtype_that_was_trained(sweep, tmp_path):
    """As the trainer cast the trunk, so is it exported, and config.json says so."""
    overlay = load_file(sweep / "overlays" / "layer-01-seed0" / "model.safetensors")
    (tmp_path / "out").mkdir()
    merge(tmp_path / "base", {name: tensor.bfloat16() for name, tensor in overlay.items()}, tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_a_copy_of_tied_embeddings_is_left_out(sweep, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    out.mkdir()
    overlay = sweep / "overlays" / "full-seed0"
    merge(base, load_file(overlay / "model.safetensors"), out)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert torch.equal(logprobs(AutoModelForCausalLM.from_pretrained(out)), expected(base, overlay))


def test_refusals_say_what_is_wrong_and_leave_nothing(sweep, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")

    def refused(*arguments):
        assert main(["export", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert "seeds 0, 3: choose one with --seed" in refused(sweep, "layer-01", "-o", out)
    assert "not trained with seed 7" in refused(sweep, "layer-01", "-o", out, "--seed", 7)
    assert "Did you mean layer-01?" in refused(sweep, "layer-1", "-o", out)
    assert "nothing was trained" in refused(sweep, "base", "-o", out)
    assert "exists already" in refused(sweep, "full", "-o", tmp_path / "taken")
    assert "no overlays there yet" in refused(tmp_path, "full", "-o", out)
    before = sorted(tmp_path.iterdir())
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "elsewhere")
    assert "weights in other formats are not read" in refused(sweep, "full", "-o", out)
    (tmp_path / "elsewhere").rename(tmp_path / "base" / "model.safetensors")
    assert sorted(tmp_path.iterdir()) == before  # no half-written folder
    (sweep / "sweep.yaml").rename(tmp_path / "sweep.yaml")
    assert "sweep.yaml: no such file" in refused(sweep, "full", "-o", out)
    (tmp_path / "sweep.yaml").rename(sweep / "sweep.yaml")
    shutil.rmtree(tmp_path / "base")
    assert "not a Hugging Face model folder" in refused(sweep, "full", "-o", out)


def test_a_sweep_in_a_folder_with_brackets(sweep, tmp_path):
    """`lr[2e-3]` is a name, not a pattern: the same overlays are found, and exported."""
    moved = tmp_path / "lr[2e-3]" / "a*b?"
    moved.parent.mkdir()
    sweep.rename(moved)
    found = [(overlay.selection, overlay.seed) for overlay in overlays(str(moved))]
    assert found == [("full", 0), ("layer-01", 0), ("layer-01", 3)]
    assert f"{tmp_path}/out[1]/model.safetensors" in export(str(moved), "layer-01", f"{tmp_path}/out[1]", 3)


def test_an_overlay_elsewhere_is_copied_and_asked_for_again(tmp_path, monkeypatch):
    """1 s after the first error and 4 s after the second, of a class of the store's own; a missing file at once."""
    store, get_file, waited = fsspec.filesystem("memory"), MemoryFileSystem.get_file, []
    store.pipe_file("/elsewhere/model.safetensors", b"weights")
    errors = [OSError("503"), RuntimeError("no route")]

    def flaky(self, *args, **kwargs):
        if errors:
            raise errors.pop(0)
        return get_file(self, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "get_file", flaky)
    monkeypatch.setattr(retries.time, "sleep", waited.append)
    copy = local_overlay(OverlayFile("layer-01", 0, "memory://elsewhere/model.safetensors"), tmp_path)
    assert copy.read_bytes() == b"weights" and copy.parent == tmp_path and waited == [1.0, 4.0]
    with pytest.raises(SpecError, match="memory://nowhere/model.safetensors: cannot be copied here"):
        local_overlay(OverlayFile("layer-01", 0, "memory://nowhere/model.safetensors"), tmp_path)
    assert waited == [1.0, 4.0]


def test_an_overlay_of_another_model(sweep, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(SpecError, match="not the model that this run trained"):
        merge(tmp_path / "base", {"model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}, tmp_path / "out")
    with pytest.raises(SpecError, match=r"\[2, 2\] in the overlay"):
        merge(tmp_path / "base", {"model.norm.weight": torch.zeros(2, 2)}, tmp_path / "out")
