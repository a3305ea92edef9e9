"""Model folders as people have them: each is planned, or refused before anything starts with field and reason.

Of twelve kinds: 32k positions, tied (with its head stored too), revisions of a hub model, added tokens with and without
rows, no template, shards, the hub's cache of links, bfloat16 on a CPU, a sliding window off and on, LFS pointers, NaN,
files that are no files. What runs compute from them is tested with engine and trainer.
"""

import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from layersweep.orchestrator.execution.manifest import model_files
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.cost_model import Assumptions
from layersweep.orchestrator.planning.model_checks import CPU_HEAD_DIMS
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.workers.startup.tiny_model_training import character_tokenizer
from tests.helpers import families
from tests.helpers.model_folders import ALPHABET, TEMPLATE, VOCABULARY, edit_config, edit_weights, make


def plan(folder: Path, run: bool = True, **sections) -> Plan:
    """What `run` (or `plan`) makes of a sweep of the folder over 30 sums; 10 are held out."""
    data = folder.parent / "sums.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(30)]
    if not data.exists():
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "name": "models",
        "model": {"type": "pretrained", "path": str(folder)},
        "task": {"type": "math", "data": {"path": str(data), "selection_share": 0.3}},
        "training": {"prompts_per_step": 2, "group_size": 2, "max_response_tokens": 64},
        "evaluation": {"suites": [{"name": "sums", "prompts": 2}]},
        "output": str(folder.parent / "runs"),
    }
    for name, section in sections.items():
        spec[name] = spec.get(name, {}) | section
    return make_plan(parse_spec(spec), fetch=run)


def as_hub_cache(folder: Path) -> Path:
    """The folder as the hub's cache keeps it: a snapshot of links to files that are named by their hash."""
    blobs, snapshot = folder.parent / "models--a--b/blobs", folder.parent / "models--a--b/snapshots/0123"
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def as_bare_model(folder: Path) -> Path:
    """Saved without its head, by the class inside: names have no `model.` before them."""
    AutoModelForCausalLM.from_pretrained(folder).model.save_pretrained(folder)
    return folder


RIGHT = {
    "qwen3": {},
    "qwen2 with its biases": {"family": "qwen2"},
    "llama": {"family": "llama"},
    "32k positions": {"max_position_embeddings": 32768},
    "tied": {"tie_word_embeddings": True},
    "sharded": {"shard": "20KB"},
    "bfloat16": {"dtype": torch.bfloat16},
    "sliding window off": {"use_sliding_window": False, "sliding_window": 16},
    "more rows than tokens": {"vocab_size": VOCABULARY + 40},
}


@pytest.mark.parametrize("name", RIGHT)
def test_models_that_are_right(tmp_path, name):
    found = plan(make(tmp_path / "model", **RIGHT[name]))
    assert found.architecture.layers == 2
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > (5 if name == "sharded" else 0)
    # The engine takes a prompt in one pass of 8,192 tokens on a CPU.
    assert found.window == (8192 if name == "32k positions" else 256)


def of_family(folder: Path, family: str, **changes) -> Path:
    families.save_random(folder, family, vocab_size=VOCABULARY, **changes)
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", families.FAMILIES)
def test_further_families_are_right(tmp_path, family):
    assert plan(of_family(tmp_path / "model", family)).architecture.layers == 4


def test_experts_that_are_missing_or_do_not_fit_the_cpu(tmp_path):
    folder = of_family(tmp_path / "model", "Qwen3Moe")
    edit_weights(folder, lambda w: w.pop("model.layers.2.mlp.experts.5.up_proj.weight"))
    with pytest.raises(SpecError, match=r"the weights lack model\.layers\.2\.mlp\.experts\.5\.up_proj\.weight"):
        plan(folder)
    odd = of_family(tmp_path / "odd", "Qwen3Moe", hidden_size=48)
    with pytest.raises(SpecError, match=r"model\.path: hidden size 48 is no multiple of 32"):
        plan(odd)


def test_a_cache_of_links_is_right(tmp_path):
    assert plan(as_hub_cache(make(tmp_path / "model"))).architecture.layers == 2


def test_a_tied_model_that_stores_its_head_too_is_right(tmp_path):
    """axolotl #3959."""
    folder = make(tmp_path / "model", tie_word_embeddings=True)
    edit_weights(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert plan(folder).architecture.layers == 2


def test_tokens_that_were_added_and_have_rows_are_right(tmp_path):
    """The embedding was resized for them: 40 rows more than the characters' tokens."""
    folder = make(tmp_path / "model", vocab_size=VOCABULARY + 40)
    _add_token(folder)
    assert plan(folder).architecture.vocabulary == VOCABULARY + 40


@pytest.mark.parametrize("revision", [None, "older"])
def test_of_a_hub_model_the_revision_is_planned_that_was_asked_for(tmp_path, monkeypatch, revision):
    """open-r1 #85, transformers #27923. The hub's cache has two commits; 2 layers in one, and 3 in the other."""
    repository = tmp_path / "models--someone--some-model"
    commits = {"main": "a" * 40, "older": "b" * 40}
    for layers, (name, commit) in enumerate(commits.items(), start=2):
        make(repository / "snapshots" / commit, num_hidden_layers=layers)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("layersweep.workers.startup.model_source.hub_resolves", lambda: False)
    model = {"path": "someone/some-model"} | ({"revision": revision} if revision else {})
    found = plan(tmp_path / "model", model=model)
    assert found.architecture.layers == (3 if revision else 2)
    assert found.source.revision == commits[revision or "main"]


def _poison(folder: Path) -> None:
    edit_weights(folder, lambda w: w["model.layers.1.mlp.up_proj.weight"].__setitem__((3, 5), float("nan")))


def _lfs(file: str):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 538090408\n"
    return lambda folder: (folder / file).write_text(pointer)


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _add_token(folder: Path) -> None:
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folder)


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
        _add_token,
        r"model\.path: the tokenizer has 1 tokens outside .*<think>",
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


def test_the_prompts_that_are_there_count_in_estimates(tmp_path):
    """Of 20 sums that train, "What is 7 + 7?" is a token a character: 14 with one digit, 16 with two."""
    found = plan(make(tmp_path / "model"))
    tokens = [len(row["question"]) for row in map(json.loads, (tmp_path / "sums.jsonl").open())]
    assert min(tokens) < found.prompt_tokens["task"] < max(tokens)
    assert f"prompts of {found.prompt_tokens['task']:.0f} tokens on average" in Assumptions().text(found)
    assert "prompts of 256 tokens (" in Assumptions().text(replace(found, prompt_tokens={}))
    assert "prompts of 9 tokens (" in Assumptions(prompt_tokens=9).text(found)


def test_sizes_of_heads_are_vllms():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(CPU_HEAD_DIMS) == CPUAttentionBackend.get_supported_head_sizes()


# Templates and their arguments


def test_a_template_of_ones_own_is_rendered_with_its_arguments(tmp_path):
    """OpenRLHF #1073, trl #2820. The prompts' tokens follow from both, and so do the fingerprints."""
    folder = make(tmp_path / "model", template=None)
    model = {"chat_template": TEMPLATE}
    plain = plan(folder, model=model).fingerprints
    thinking = plan(folder, model=model | {"template_arguments": {"thinking": True}}).fingerprints
    assert plain["task"] == thinking["task"]
    assert plain["task, train prompts as tokens"] != thinking["task, train prompts as tokens"]
    assert plan(make(tmp_path / "other"), model={}).fingerprints == plain
    with pytest.raises(SpecError, match="^model.template_arguments: the chat template has no variable thinkin;"):
        plan(folder, model=model | {"template_arguments": {"thinkin": True}})


def test_plain_text_needs_no_template(tmp_path):
    folder = make(tmp_path / "model", template=None)
    data = {"path": str(tmp_path / "sums.jsonl"), "prompt_format": "plain", "selection_share": 0.3}
    with pytest.raises(SpecError, match="no chat template"):
        plan(folder)
    assert plan(folder, task={"data": data}).data["task"].rows == 30


def test_a_folder_has_no_revisions(tmp_path):
    """TGI #3247: fields that nothing would read are refused."""
    with pytest.raises(SpecError, match="^model.revision: a folder has no revisions"):
        plan(make(tmp_path / "model"), model={"revision": "v2"})


# What resume compares


@pytest.mark.parametrize(
    "file",
    ["chat_template.jinja", "special_tokens_map.json", "vocab.json", "merges.txt", "model.safetensors.index.json"],
)
def test_files_that_prompts_or_weights_depend_on_are_part_of_the_experiment(tmp_path, file):
    """vllm #15705."""
    folder = make(tmp_path / "model")
    (folder / file).write_text("one")
    (folder / "README.md").write_text("one")
    spec = parse_spec({"name": "files", "model": str(folder), "task": {"type": "sort_digits"}})
    before = model_files(spec)
    (folder / "README.md").write_text("two")
    assert model_files(spec) == before
    (folder / file).write_text("two")
    assert {name for name, digest in model_files(spec).items() if before[name] != digest} == {file}


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


ODD_FILES = {
    "nested config": ("config.json", b"[" * 100_000), "UTF-16": ("config.json", b"\xff\xfe"),
    "list as header": ("model.safetensors", b"\2\0\0\0\0\0\0\0[]"),
    "no offsets": ("model.safetensors", b'\x08\0\0\0\0\0\0\0{"a":{}}'),
    "number as shard": ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}'),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_FILES)
def test_files_of_a_model_that_hold_something_else(tmp_path, name):
    file, content = ODD_FILES[name]
    folder = make(tmp_path / "model")
    (folder / file).write_bytes(content)
    with pytest.raises(SpecError, match=r"model\.path: "):
        plan(folder, run=False)


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device", "link to nowhere"])
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
     "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json", "model.safetensors.index.json"],
)  # fmt: skip
def test_what_a_model_is_loaded_from_and_is_no_file(tmp_path, monkeypatch, name, kind):
    """Readers of a pipe or of /dev/zero never end."""
    file = make(tmp_path / "model") / name
    file.unlink(missing_ok=True)
    monkeypatch.chdir(file.parent)  # the path of a socket is short
    {
        "folder": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(name),
        "device": lambda: file.symlink_to("/dev/zero"),
        "link to nowhere": lambda: file.symlink_to("x"),
    }[kind]()
    with pytest.raises(SpecError, match=rf"^model\.path: .*{name}"):
        plan(file.parent, run=False)


@pytest.mark.parametrize("path", ["~nosuch/x", "x" * 300, "cut.gguf"])
def test_paths_that_lead_to_no_model(tmp_path, monkeypatch, path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if path == "cut.gguf":
        path = str(tmp_path / path)
        Path(path).write_bytes(b"GGUF")
    with pytest.raises(SpecError, match=r"model\.path: "):
        plan(tmp_path / "model", model={"path": path}, run=False)


def test_a_cache_that_cannot_be_written_is_named_before_the_conversion(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(SpecError, match=r"model\.path: .*cannot be written .*; set XDG_CACHE_HOME"):
        plan(tmp_path / "model", model={"path": str(tmp_path / "a.gguf")}, run=False)
