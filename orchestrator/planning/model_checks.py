"""Checks of a model folder: everything in its files that would end a run, found before one starts."""

import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.config import PretrainedModel
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.checkpoint import HEAD, INDEX, StoredTensor, non_finite, shards, stored_tensors
from layersweep.policies.model.families import FAMILIES
from layersweep.policies.wording import counted
from layersweep.rollout.data.data_config import DataConfig
from layersweep.rollout.types import Prompt
from layersweep.workers.config import TrainingConfig
from layersweep.workers.startup.model_source import LOADED

from .cost_model import cache_bytes
from .model_architecture import TOKENIZERS, ResolvedModel
from .plan import Plan

if TYPE_CHECKING:  # transformers, which a plan without local model does without
    from layersweep.rollout.prompt_encoder import PromptEncoder

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's attention on CPUs; tests/orchestrator/planning/test_model_checks.py compares with vLLM."""
CPU_FP8_HEAD_DIM = 32
"""Number that a head's size is a multiple of, where vLLM on CPUs has a KV cache in FP8."""
CPU_EXPERTS = 32
"""Number that the hidden size of a model with experts is a multiple of, in vLLM on CPUs."""
DTYPES = {"F32", "F16", "BF16"}
"""Stored dtypes that can be trained, as safetensors names them."""
SINGLE = "model.safetensors"
QUANTIZED = "hf_quant_config.json"
"""File beside config.json by which vLLM takes a model for a quantized one."""
SELF_CHECK_TOKENS = 64
"""Window that an engine's self-check needs."""
READ_BY_PLAN = 1 << 30
"""Bytes of weights that a plan looks through for NaN. Of larger models it reads vectors and the beginnings of matrices;
a run reads all."""
BEGINNING = 1 << 16
"""Bytes of a matrix's beginning."""
RENDER_SECONDS = 3
"""Time for a chat template to render one word, which takes milliseconds."""
SHOWN = 3


def model_problems(spec: SweepSpec, model: ResolvedModel, weights_needed: bool) -> list[str]:
    """List a model's problems, a line each; none of what is not on this machine.

    Args:
        spec: of the sweep.
        model: as resolved.
        weights_needed: also where the folder holds no weights at all; a plan needs none.
    """
    shape, problems = model.architecture, []
    if shape.heads % spec.rollout.tensor_parallel_size:
        problems.append(
            f"rollout.tensor_parallel_size: {spec.rollout.tensor_parallel_size} does not divide the model's "
            f"{shape.heads} attention heads"
        )
    if (asked := spec.rollout.max_model_len) and asked > shape.max_positions:
        problems.append(f"rollout.max_model_len: {asked} is more than the model's {shape.max_positions} positions")
    if spec.rollout.cuda_graphs and not FAMILIES[shape.name].static_slots:
        problems.append(f"rollout.cuda_graphs: not for {shape.name}, whose modules cannot be captured; set it to false")
    if spec.rollout.kv_cache_dtype == "fp8" and not spec.resources.on_gpu() and shape.head_dim % CPU_FP8_HEAD_DIM:
        problems.append(
            f"rollout.kv_cache_dtype: on CPUs vLLM has fp8 for heads of a multiple of {CPU_FP8_HEAD_DIM} alone, and "
            f"the model's have {shape.head_dim}; set it to auto"
        )
    if not isinstance(spec.model, PretrainedModel):
        return problems
    if not spec.resources.on_gpu() and shape.head_dim not in CPU_HEAD_DIMS:
        problems.append(
            f"model.path: heads of size {shape.head_dim} are not among those that vLLM computes on CPUs "
            f"({', '.join(map(str, CPU_HEAD_DIMS))}); use GPUs or another model"
        )
    if not spec.resources.on_gpu() and shape.experts and shape.hidden % CPU_EXPERTS:
        problems.append(
            f"model.path: hidden size {shape.hidden} is no multiple of {CPU_EXPERTS}, as vLLM's experts on CPUs need; "
            "use GPUs or another model"
        )
    if spec.model.revision is not None and Path(spec.model.path).is_dir():
        problems.append("model.revision: a folder has no revisions, only a model of the hub has; leave it out")
    if model.folder is None:
        return problems
    try:
        _check_ordinary(model.folder)
        if weights_needed or any(model.folder.glob("*.safetensors")):
            _check_files(model.folder)
            _check_weights(model.folder, shape, read_all=weights_needed)
    except (ValueError, OSError) as error:
        problems.append(f"model.path: {model.folder}: {error}")
    if weights_needed and model.tokenizer is None:
        problems.append(f"model.path: {model.folder} holds no tokenizer ({', '.join(TOKENIZERS)})")
    return problems


def window_problems(plan: Plan) -> list[str]:
    """List why an engine with the plan's window would not start."""
    rollout, window = plan.spec.rollout, plan.window
    if window < SELF_CHECK_TOKENS:
        bound = (
            "rollout.max_num_batched_tokens: bounds" if plan.architecture.max_positions > window else
            "model.path: max_position_embeddings bounds"
        )  # fmt: skip
        return [f"{bound} the window to {window} tokens, and the engine's self-check needs {SELF_CHECK_TOKENS}"]
    cache = 0 if plan.spec.resources.on_gpu() else (rollout.kv_cache_memory_mib or 0) << 20
    if cache and (needed := window * cache_bytes(plan)) > cache:
        return [
            f"rollout.kv_cache_memory_mib: one sequence of the window's {window:,} tokens takes "
            f"{math.ceil(needed / 2**20):,} MiB; raise it from {rollout.kv_cache_memory_mib:,}, or lower "
            "rollout.max_model_len"
        ]
    return []


def config_problems(model: ResolvedModel, trust_remote_code: bool) -> list[str]:
    """List what transformers refuses in the config.json beside a tokenizer; it is the last word on what fields hold."""
    import transformers

    try:
        transformers.AutoConfig.from_pretrained(model.tokenizer, trust_remote_code=trust_remote_code)
    except Exception as error:  # its validators raise classes of their own
        return [f"model.path: {model.tokenizer}/config.json: transformers refuses it ({' '.join(str(error).split())})"]
    return []


def tokenizer_problems(encoder: "PromptEncoder", model: ResolvedModel, training: TrainingConfig) -> list[str]:
    """List tokens without an embedding: of all that the tokenizer knows, and those that end a response. Some must."""
    rows = model.architecture.vocabulary
    known = encoder.tokenizer.get_vocab()
    outside = sorted(token for token, number in known.items() if number >= rows)
    if outside:
        return [
            f"model.path: the tokenizer has {counted(len(outside), 'tokens')} outside the model's embedding of {rows} "
            f"rows, such as {outside[0]!r}; resize the embedding (resize_token_embeddings), or take these tokens out"
        ]
    if stops := [number for number in encoder.stop_token_ids if number >= rows]:
        return [f"model.path: eos_token_id {stops[0]} is outside the model's embedding of {rows} rows; correct it"]
    if not encoder.stop_token_ids and not training.stop:
        return [
            "model.path: neither tokenizer nor generation_config.json nor config.json names an eos token, so that no "
            "response would end by itself; write its eos_token_id into generation_config.json, or set training.stop"
        ]
    return []


def template_problems(
    encoder: "PromptEncoder", model: PretrainedModel, sections: Sequence[tuple[str, Any]]
) -> list[str]:
    """List task sections whose messages cannot be rendered, and arguments that the template does not know."""
    problems = []
    template = encoder.chat_template
    for section, config in sections:
        if (field := field_of_messages(section, config)) is None:
            continue
        if template is None:
            problems.append(
                f"{field}: the model has no chat template to render messages with; name one as model.chat_template, "
                "or choose plain text"
            )
            continue
        try:
            said = (Prompt("", messages=({"role": "user", "content": text},)) for text in ("0", "1"))
            shown = {_in_time(encoder.render, prompt) for prompt in said}
        except TimeoutError:
            return [f"{field}: the model's chat template has not rendered one word in {RENDER_SECONDS} s, as if its "
                    "loops had no end; name another one as model.chat_template"]  # fmt: skip
        except Exception as error:  # a template raises what it pleases
            problems.append(f"{field}: the model's chat template fails ({' '.join(str(error).split())})")
            continue
        if len(shown) == 1:
            problems.append(f"{field}: the model's chat template does not show what the user says; name one that does "
                            "as model.chat_template")  # fmt: skip
    for name in model.template_arguments:
        if template is not None and not re.search(rf"\b{re.escape(name)}\b", template):
            problems.append(f"model.template_arguments: the chat template has no variable {name}; correct its spelling")
    return problems


def _in_time(call: Callable[..., str], *arguments: Any) -> str:
    """Return what a call returns that may never end. It then goes on in a thread, which ends with the process.

    Raises:
        TimeoutError: after RENDER_SECONDS.
    """
    found: Future[str] = Future()

    def compute() -> None:
        try:
            found.set_result(call(*arguments))
        except Exception as error:  # the caller's
            found.set_exception(error)

    threading.Thread(target=compute, daemon=True).start()
    return found.result(RENDER_SECONDS)


def tool_problems(encoder: "PromptEncoder", tools: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """List task sections with tools that the model's chat template does not show, or whose results it does not.

    Args:
        tools: of each section.
    """
    problems = []
    for section, schemas in tools.items():
        said = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "<tool_call>"},
                {"role": "tool", "content": "what-the-tool-gave"})  # fmt: skip
        try:
            shown = encoder.tokenizer.decode(encoder.encode(Prompt("", messages=said, tools=tuple(schemas))))
        except Exception as error:  # a template raises what it pleases
            problems.append(f"{section}: the model's chat template fails on tools ({' '.join(str(error).split())})")
            continue
        names = [tool["function"]["name"] for tool in schemas]
        if lacking := [name for name in [*names, "what-the-tool-gave"] if name not in shown]:
            what = "the results of tools" if lacking[0] not in names else f"the tool {lacking[0]}"
            problems.append(f"{section}: the model's chat template does not show {what}; name one that does as "
                            "model.chat_template")  # fmt: skip
    return problems


def field_of_messages(section: str, config: Any) -> str | None:
    """Return the field that has a task section's prompts sent as messages; None where they are text."""
    if isinstance(getattr(config, "data", None), DataConfig):
        section, config = f"{section}.data", config.data
    if getattr(config, "history", None) == "messages":
        return f"{section}.history: messages"
    if getattr(config, "chat", False):
        return f"{section}.chat: true"
    return f"{section}.prompt_format: chat" if getattr(config, "prompt_format", "plain") == "chat" else None


def _check_weights(folder: Path, shape: Architecture, read_all: bool) -> None:
    """Refuse weights that are not there, damaged, or not those that config.json describes.

    Raises:
        ValueError: says what is wrong with them.
    """
    tensors = stored_tensors(folder)
    weights = shape.outer_weights | shape.stored_weights
    required = {name: size for name, size in weights.items() if not name.endswith(".bias")}
    expected = required | {HEAD: (shape.vocabulary, shape.hidden)}  # which a folder may hold though it is tied
    if foreign := sorted({tensor.dtype for tensor in tensors.values()} - DTYPES):
        raise ValueError(f"weights stored as {', '.join(foreign)} cannot be trained; take the model in 16 or 32 bits")
    if missing := [name for name in required if name not in tensors]:
        raise ValueError(f"the weights lack {_listed(missing)}; download the model again")
    known = expected.keys() | {f"model.layers.{k}.self_attn.{p}_proj.bias" for k in range(shape.layers) for p in "qkv"}
    if unknown := [name for name in tensors if name not in known and not name.endswith("rotary_emb.inv_freq")]:
        raise ValueError(f"the weights hold {_listed(unknown)}, which {shape.name} as supported here has not")
    for name, wanted in expected.items():
        if name in tensors and tensors[name].shape != wanted:
            raise ValueError(f"{name} is {tensors[name].shape}, by config.json it is {wanted}; one of the two is wrong")
    read_all = read_all or sum(len(tensor.content) for tensor in tensors.values()) <= READ_BY_PLAN
    if broken := non_finite({name: _looked_at(tensor, read_all) for name, tensor in tensors.items()}):
        raise ValueError(f"{broken} holds NaN or infinite values: the checkpoint is damaged")


def _check_ordinary(folder: Path) -> None:
    """Refuse what a model is loaded from and is no file: a pipe would keep its reader waiting.

    Raises:
        ValueError: says which.
    """
    there = sorted(path for path in folder.iterdir() if any(path.match(pattern) for pattern in LOADED))
    if odd := [path.name for path in there if not path.is_file()]:
        raise ValueError(f"{_listed(odd)}: no ordinary file, or a link to none; replace it by the model's own")


def _check_files(folder: Path) -> None:
    """Refuse files of which transformers and vLLM would not load the same.

    Raises:
        ValueError: says which files.
    """
    if (folder / QUANTIZED).exists():
        raise ValueError(f"{QUANTIZED}: quantized weights cannot be trained; take the original model")
    there = {path.name for path in folder.glob("*.safetensors")}
    if (folder / INDEX).is_file():
        if SINGLE in there and SINGLE not in {path.name for path in shards(folder)}:
            raise ValueError(f"{SINGLE} and {INDEX} name two sets of weights; remove one")
    elif SINGLE in there:
        if others := sorted(there - {SINGLE}):
            raise ValueError(f"beside {SINGLE} there is {_listed(others)}, which vLLM loads too; remove it")
    else:
        pickled = any(path.suffix in (".bin", ".pt", ".pth") for path in folder.iterdir())
        found = (
            f"; there is {_listed(sorted(there))}" if there else
            "; pickled weights (*.bin, *.pt) are not loaded: they can run code" if pickled else ""
        )  # fmt: skip
        raise ValueError(f"it holds neither {SINGLE} nor {INDEX}{found}")


def _looked_at(tensor: StoredTensor, whole: bool) -> StoredTensor:
    return tensor if whole or len(tensor.shape) < 2 else replace(tensor, content=tensor.content[:BEGINNING])


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
