"""Models that are refused before anything starts, with field and reason: by their configuration, weights or tokenizer.

Those that are right are in test_models.py, files that hold something else in test_model_files.py.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from layersweep.orchestrator.planning import model_checks
from layersweep.orchestrator.planning.cost_model import Assumptions
from layersweep.orchestrator.planning.model_checks import CPU_HEAD_DIMS
from layersweep.orchestrator.spec.errors import SpecError
from tests.helpers.model_folders import VOCABULARY, add_token, edit_config, edit_weights, make, of_family, plan


def as_bare_model(folder: Path) -> Path:
    """Saved without its head, by the class inside: names have no `model.` before them."""
    AutoModelForCausalLM.from_pretrained(folder).model.save_pretrained(folder)
    return folder


def _poison(folder: Path) -> None:
    edit_weights(folder, lambda w: w["model.layers.1.mlp.up_proj.weight"].__setitem__((3, 5), float("nan")))


def _lfs(file: str):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 538090408\n"
    return lambda folder: (folder / file).write_text(pointer)


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _without_end(folder: Path) -> None:
    for name in ("tokenizer_config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.pop("eos_token", None), settings.pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(settings))


WRONG = {
    "no chat template": ({"template": None}, None, r"task\.data\.prompt_format: chat: the model has no chat template"),
    "template that fails": ({"template": "{{ nothing.at.all }}"}, None, r"task\.data\.prompt_format: .*template fails"),
    "missing shard": (
        {"shard": "20KB"},
        lambda folder: min(folder.glob("*.safetensors")).unlink(),
        r"model\.path: .*lacks model-00001-of-\d+\.safetensors, which model\.safetensors\.index\.json names",
    ),
    "missing index": (
        {"shard": "20KB"},
        lambda folder: (folder / "model.safetensors.index.json").unlink(),
        r"model\.path: .*neither model\.safetensors nor .*; there is model-00001",
    ),
    "two sets of weights": (
        {},
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors"),
        r"model\.path: .*beside model\.safetensors there is consolidated\.safetensors",
    ),
    "pickled": (
        {},
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"model\.path: .*neither model\.safetensors .*pickled weights",
    ),
    "LFS pointer": (
        {},
        _lfs("model.safetensors"),
        r"model\.path: .*model\.safetensors is a Git LFS pointer.*lfs pull",
    ),
    "LFS pointer for a tokenizer": ({}, _lfs("tokenizer.json"), r"model\.path: the tokenizer of .* cannot be loaded"),
    "LFS pointer for a config": ({}, _lfs("config.json"), r"model\.path: .*config\.json is not JSON"),
    "cut off": ({}, _cut, r"model\.path: .*model\.safetensors is cut off"),
    "empty file": (
        {},
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        r"model\.path: .*model\.safetensors is no safetensors file, or is cut off",
    ),
    "no tokenizer": (
        {},
        lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
        r"model\.path: .*holds no tokenizer",
    ),
    "tokenizer larger than the embedding": (
        {},
        add_token,
        r"model\.path: the tokenizer has 1 token outside .*<think>",
    ),
    "end token outside": ({"eos_token_id": VOCABULARY}, None, r"model\.path: eos_token_id \d+ is outside"),
    "NaN in float32": ({}, _poison, r"model\.path: .*layers\.1\.mlp\.up_proj\.weight in .* holds NaN"),
    "NaN in bfloat16": ({"dtype": torch.bfloat16}, _poison, r"model\.path: .*up_proj\.weight in .* holds NaN"),
    "infinity in float16": (
        {"dtype": torch.float16},
        lambda folder: edit_weights(folder, lambda w: w["model.norm.weight"].fill_(float("inf"))),
        r"model\.path: .*model\.norm\.weight in .* holds NaN or infinite",
    ),
    "quantised by its config": (
        {},
        lambda folder: edit_config(folder, quantization_config={"quant_method": "awq", "bits": 4}),
        r"model\.path: .*quantization_config",
    ),
    "quantised by its weights": (
        {},
        lambda folder: edit_weights(
            folder, lambda w: w.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(64, 64, dtype=torch.int8)})
        ),
        r"model\.path: .*weights stored as I8 cannot be trained",
    ),
    "attention bias": (
        {"family": "llama", "attention_bias": True},
        None,
        r"model\.path: .*attention_bias\b.* not supported",
    ),
    "attention bias of qwen3": ({"attention_bias": True}, None, r"model\.path: .*attention_bias\b.* not supported"),
    "MLP bias": ({"family": "llama", "mlp_bias": True}, None, r"model\.path: .*mlp_bias\b.* not supported"),
    "sliding window on": (
        {"family": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        None,
        r"model\.path: config\.json: use_sliding_window: .* is not supported",
    ),
    "dynamic rope": (
        {"family": "llama"},
        lambda folder: edit_config(folder, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        r"model\.path: config\.json: rope_parameters\.rope_type: .dynamic. is not supported",
    ),
    "heads of 40": ({"head_dim": 40}, None, r"model\.path: heads of size 40 .*CPUs \(32, 64"),
    "heads of 16": ({"head_dim": 16}, None, r"model\.path: heads of size 16 are not among"),
    "weights of another size": (
        {},
        lambda folder: edit_config(folder, intermediate_size=128),
        r"model\.path: .*mlp\.gate_proj\.weight is \(64, 64\), by config\.json it is \(128, 64\)",
    ),
    "more layers than weights": (
        {},
        lambda folder: edit_config(folder, num_hidden_layers=3),
        r"model\.path: .*the weights lack model\.layers\.2\.input_layernorm\.weight",
    ),
    "more weights than layers": (
        {},
        lambda folder: edit_config(folder, num_hidden_layers=1),
        r"model\.path: .*the weights hold model\.layers\.1",
    ),
    "bare model": ({}, as_bare_model, r"model\.path: "),
    "weights of whole numbers by its config": (
        {},
        lambda folder: edit_config(folder, torch_dtype="int8"),
        r"model\.path: config\.json: torch_dtype: \"int8\" is not supported; supported are float32",
    ),
    "dtype that torch has not": (
        {},
        lambda folder: edit_config(folder, dtype="floaty16"),
        r"model\.path: config\.json: dtype: \"floaty16\" is not supported",
    ),
    "no model_type": (
        {},
        lambda folder: edit_config(folder, model_type=None),
        r"model\.path: config\.json lacks 'model_type'.*; of an Qwen3ForCausalLM it is \"qwen3\"",
    ),
    "end token below 0": (
        {},
        lambda folder: edit_config(folder, eos_token_id=-1),
        r"model\.path: config\.json: eos_token_id: -1 is no number of a token",
    ),
    "end token that is text": (
        {},
        lambda folder: edit_config(folder, eos_token_id=[1, "</s>"]),
        r"model\.path: config\.json: eos_token_id: \"</s>\" is no number of a token",
    ),
    "end token below 0 to generate with": (
        {},
        lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": [1, -1]}'),
        r"model\.path: the tokenizer .* \(generation_config\.json: eos_token_id cannot be read: -1 is no number",
    ),
    "end token outside to generate with": (
        {},
        lambda folder: (folder / "generation_config.json").write_text(f'{{"eos_token_id": {VOCABULARY}}}'),
        r"model\.path: eos_token_id \d+ is outside",
    ),
    "list to generate with": (
        {},
        lambda folder: (folder / "generation_config.json").write_text("[]"),
        r"model\.path: .*generation_config\.json: eos_token_id cannot be read",
    ),
    "no end token": (
        {"eos_token_id": None},
        _without_end,
        r"model\.path: neither tokenizer nor generation_config\.json nor config\.json names an eos token.*training\.st",
    ),
    "template that leaves the question out": (
        {"template": "What?"},
        None,
        r"task\.data\.prompt_format: chat: the model's chat template does not show what the user says",
    ),
    "rope without a base": (
        {"family": "llama"},
        lambda folder: edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": -1.0}),
        r"model\.path: config\.json: rope_parameters\.rope_theta: -1\.0 is no number above 0",
    ),
    "rope factor that is text": (
        {"family": "llama"},
        lambda folder: edit_config(folder, rope_parameters={"rope_type": "linear", "factor": "2", "rope_theta": 1e4}),
        r'model\.path: config\.json: rope_parameters\.factor: "2" is no number above 0',
    ),
    "quantised by a file of its own": (
        {},
        lambda folder: (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}'),
        r"model\.path: .*hf_quant_config\.json: quantized weights cannot be trained",
    ),
    "quantised by an empty field": (
        {},
        lambda folder: edit_config(folder, quantization_config={}),
        r"model\.path: .*quantization_config",
    ),
    "bytes behind the weights": (
        {},
        lambda folder: (folder / "model.safetensors").open("ab").write(b"more"),
        r"model\.path: .*model\.safetensors has bytes behind its last tensor",
    ),
    "window below the self-check's": (
        {"max_position_embeddings": 63},
        None,
        r"model\.path: max_position_embeddings bounds the window to 63 tokens",
    ),
    "tokenizer_config that is a list": (
        {},
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        r"model\.path: the tokenizer .* cannot be loaded .*; replace its files by the model's own",
    ),
    "field that transformers refuses": (
        {},
        lambda folder: edit_config(folder, use_cache="sometimes"),
        r"model\.path: .*/config\.json: transformers refuses it",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_models_that_are_refused(tmp_path, name):
    """OpenRLHF #87, open-r1 #85, transformers #27923."""
    settings, change, says = WRONG[name]
    folder = make(tmp_path / "model", **settings)
    if change:
        change(folder)
    with pytest.raises(SpecError, match=f"(?m)^{says}"):
        plan(folder)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", [name for name in WRONG if name not in ("pickled", "no tokenizer", "missing index")])
def test_a_plan_refuses_what_a_run_does_of_the_files_that_are_there(tmp_path, name):
    settings, change, says = WRONG[name]
    folder = make(tmp_path / "model", **settings)
    if change:
        change(folder)
    with pytest.raises(SpecError, match=f"(?m)^{says}"):
        plan(folder, run=False)


def test_a_template_without_an_end(tmp_path, monkeypatch):
    """Loops of some seconds, which are waited for a twentieth of one; told once for all that would be rendered."""
    monkeypatch.setattr(model_checks, "RENDER_SECONDS", 0.05)
    loops = "{% for a in range(2000) %}{% for b in range(2000) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    with pytest.raises(SpecError) as refused:
        plan(make(tmp_path / "model", template=loops))
    assert len(refused.value.problems) == 1
    assert refused.value.problems[0].startswith(
        "task.data.prompt_format: chat: the model's chat template has not rendered one word in 0.05 s"
    )


def test_stop_strings_end_responses_too(tmp_path):
    folder = make(tmp_path / "model", eos_token_id=None)
    _without_end(folder)
    assert plan(folder, training={"stop": ["."]}).architecture.layers == 2


def test_code_of_the_models_own_is_looked_at_where_it_would_run(tmp_path):
    """The engine loads the config with `trust_remote_code`, and then the file that it names must be there."""
    folder = make(tmp_path / "model")
    edit_config(folder, auto_map={"AutoConfig": "configuration_own.Own"})
    assert plan(folder).architecture.layers == 2
    with pytest.raises(SpecError, match=r"(?m)^model\.path: .*configuration_own"):
        plan(folder, model={"trust_remote_code": True})


def test_a_cache_too_small_for_one_sequence(tmp_path):
    """2 layers x 1 head x 32 x keys and values in float32 are 512 bytes a token: 4 MiB of 8,192."""
    folder = make(tmp_path / "model", max_position_embeddings=32768)
    with pytest.raises(SpecError, match=r"^rollout\.kv_cache_memory_mib: .* 8,192 tokens takes 4 MiB; raise it from 3"):
        plan(folder, rollout={"kv_cache_memory_mib": 3})
    assert plan(folder, rollout={"kv_cache_memory_mib": 4}).window == 8192
    assert plan(folder, rollout={"kv_cache_memory_mib": 1, "kv_cache_dtype": "fp8"}).window == 8192


def test_the_prompts_that_are_there_count_in_estimates(tmp_path):
    """Of 20 sums that train, "What is 7 + 7?" is a token a character: 14 with one digit, 16 with two."""
    found = plan(make(tmp_path / "model"))
    tokens = [len(row["question"]) for row in map(json.loads, (tmp_path / "sums.jsonl").open())]
    assert min(tokens) < found.prompt_tokens["task"] < max(tokens)
    assert f"prompts of {found.prompt_tokens['task']:.0f} tokens on average" in Assumptions().text(found)
    assert "prompts of 256 tokens (" in Assumptions().text(replace(found, prompt_tokens={}))
    assert "prompts of 9 tokens (" in Assumptions(prompt_tokens=9).text(found)


def test_a_cache_in_fp8_wants_heads_that_vllm_has_it_for(tmp_path):
    """Of 80 numbers vLLM computes attention on CPUs, but not from FP8."""
    folder = make(tmp_path / "model", head_dim=80)
    assert plan(folder).spec.rollout.kv_cache_dtype == "auto"
    with pytest.raises(SpecError, match=r"^rollout\.kv_cache_dtype: on CPUs .* multiple of 32 alone, .* have 80; set"):
        plan(folder, rollout={"kv_cache_dtype": "fp8"})


def test_sizes_of_heads_are_vllms():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(CPU_HEAD_DIMS) == CPUAttentionBackend.get_supported_head_sizes()


def test_experts_that_are_missing_or_do_not_fit_the_cpu(tmp_path):
    folder = of_family(tmp_path / "model", "Qwen3Moe")
    edit_weights(folder, lambda w: w.pop("model.layers.2.mlp.experts.5.up_proj.weight"))
    with pytest.raises(SpecError, match=r"the weights lack model\.layers\.2\.mlp\.experts\.5\.up_proj\.weight"):
        plan(folder)
    odd = of_family(tmp_path / "odd", "Qwen3Moe", hidden_size=48)
    with pytest.raises(SpecError, match=r"model\.path: hidden size 48 is no multiple of 32"):
        plan(odd)


@pytest.mark.parametrize("change", [
    {"num_hidden_layers": "2"}, {"num_hidden_layers": 10**9}, {"num_hidden_layers": 0}, {"num_attention_heads": 0},
    {"num_key_value_heads": 3}, {"head_dim": -32}, {"vocab_size": True}, {"max_position_embeddings": 1e3},
    {"rope_scaling": "yarn"}, {"rope_parameters": 3}, {"layer_types": 3}, {"rms_norm_eps": "1e-6"},
    {"tie_word_embeddings": "false"}, {"model_type": "llama"},
], ids=str)  # fmt: skip
def test_fields_of_a_config_of_another_kind(tmp_path, change):
    folder = make(tmp_path / "model")
    edit_config(folder, **change)
    with pytest.raises(SpecError, match=rf"model\.path: .*config\.json: {next(iter(change))}: "):
        plan(folder)


def test_a_folder_has_no_revisions(tmp_path):
    """TGI #3247: fields that nothing would read are refused."""
    with pytest.raises(SpecError, match="^model.revision: a folder has no revisions"):
        plan(make(tmp_path / "model"), model={"revision": "v2"})
