"""Bad specs, data files and model folders by the hundred: exit code 2, a field and a reason, and nothing started."""

import copy
import json
import random
import re
import sys

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layersweep.cli import DEMO, main

SPEC = yaml.safe_load(open(DEMO))
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.just(10**30), st.floats(allow_nan=True), st.text(max_size=8),
    st.just("../../etc/passwd"), st.just("!!python/object:os.system"), st.just([]), st.just({}), st.just([[1]]),
    st.just({"type": "nothing"}), st.just(["a", "a"]), st.just({"search": {"budget": -1}}), st.just("7:3:0"),
)  # fmt: skip


def places(value, path=()):
    """Every place in a nested mapping, leaves and sections alike."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*path, i))


PLACES = sorted(places(SPEC), key=str)


@st.composite
def broken(draw):
    """The demo with one to three places replaced by junk, removed, or given an unknown neighbour."""
    spec = copy.deepcopy(SPEC)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        owner = spec
        try:
            for part in path[:-1]:
                owner = owner[part]
            how = draw(st.sampled_from(["junk", "junk", "remove", "unknown"]))
            if how == "remove":
                del owner[path[-1]]
            else:
                owner[path[-1] if how == "junk" else f"{path[-1]}x"] = draw(JUNK)
        except (KeyError, TypeError, IndexError):
            continue  # an earlier change took the place away
    return spec


def outcome(capsys, path, command: str = "plan") -> tuple[int, list[str]]:
    """Exit code and lines of standard error; an exception fails the test by itself."""
    capsys.readouterr()
    code = main([command, str(path)])
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
    return code, capsys.readouterr().err.splitlines()


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(spec=broken())
def test_broken_specs_are_refused_with_field_and_reason(tmp_path, capsys, spec):
    """What is valid by chance is planned; all else is refused, and leaves nothing behind."""
    spec = {**spec, "output": str(tmp_path / "out")} if isinstance(spec.get("output"), str) else spec
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    code, lines = outcome(capsys, path)
    assert code in (0, 2)
    assert not (tmp_path / "out").exists()
    if code == 2:
        assert lines and all(re.match(r"layersweep: [\w\[\].@-]+: \S|layersweep: .*spec.yaml: \S", x) for x in lines), (
            lines
        )
        assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "name: [", "\t", "name: !!python/object/apply:os.system ['true']", "\x00", "a: &a [*a]", "{}"],
)
def test_what_is_no_mapping_is_refused(tmp_path, capsys, text):
    path = tmp_path / "spec.yaml"
    path.write_bytes(text.encode())
    code, lines = outcome(capsys, path)
    assert code == 2 and lines and lines[0].startswith("layersweep: ")


GOOD = [{"question": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(60)]


def bad_files(folder):
    """Fifty files that hold something else than questions and answers; name and what the refusal must name."""
    rng = random.Random(0)
    lines = [json.dumps(row) for row in GOOD]
    rows = [
        {}, {"question": "q"}, {"answer": "1"}, {"question": None, "answer": "1"}, {"question": 3, "answer": "1"},
        {"question": "", "answer": "1"}, {"question": "q", "answer": None}, {"question": ["q"], "answer": "1"},
        {"question": "x" * 2_000_000, "answer": "1"}, {"prompt": [], "answer": "1"}, {"prompt": [{}], "answer": "1"},
        {"prompt": [{"role": "user"}], "answer": "1"}, {"prompt": [{"role": 1, "content": "x"}], "answer": "1"},
        {"prompt": "text", "reward_model": 5}, {"question": "\ud800", "answer": "1"}, [], 7, "text", None, True,
        {"question": {"a": 1}, "answer": "1"},
    ]  # fmt: skip
    for i, row in enumerate(rows):
        at = rng.randrange(len(lines))
        path = folder / f"row-{i}.jsonl"
        path.write_text("\n".join([*lines[:at], json.dumps(row), *lines[at:]]))
        yield path, at + 1
    for i in range(14):
        at = rng.randrange(len(lines))
        path = folder / f"cut-{i}.jsonl"
        path.write_text("\n".join([*lines[:at], lines[at][: rng.randrange(1, len(lines[at]) - 1)], *lines[at + 1 :]]))
        yield path, at + 1
    whole = folder / "whole.parquet"
    pd.DataFrame(GOOD).to_parquet(whole)
    content = whole.read_bytes()
    for i in range(8):
        path = folder / f"cut-{i}.parquet"
        path.write_bytes(content[: rng.randrange(len(content) - 1)])
        yield path, None
    for name, frame in {"no-answer": pd.DataFrame({"question": ["a"]}), "empty": pd.DataFrame(),
                        "no-rows": pd.DataFrame({"question": [], "answer": []})}.items():  # fmt: skip
        path = folder / f"{name}.parquet"
        frame.to_parquet(path)
        yield path, 1 if name == "no-answer" else None
    for name, text in {"empty.jsonl": b"", "binary.jsonl": bytes(range(256)), "data.pkl": b"\x80\x04.",
                       "list.json": b"{"}.items():  # fmt: skip
        path = folder / name
        path.write_bytes(text)
        yield path, None
    yield folder / "is-not-there.jsonl", None


def test_bad_data_files_are_refused_by_row_number(tmp_path, capsys):
    found = list(bad_files(tmp_path))
    assert len(found) >= 50
    for path, row in found:
        spec = copy.deepcopy(SPEC) | {
            "output": str(tmp_path / "out"),
            "model": "Qwen/Qwen3-1.7B-Base",
            "task": {"type": "math", "data": {"path": str(path), "prompt_format": "plain"}},
        }
        spec["training"]["prompts_per_step"] = 2
        spec["evaluation"] = {"suites": [{"name": "m", "prompts": 1}]}
        file = tmp_path / "spec.yaml"
        file.write_text(yaml.safe_dump(spec))
        code, lines = outcome(capsys, file)
        assert code == 2 and lines, path
        assert all(line.startswith("layersweep: ") for line in lines), lines
        assert any("data" in line for line in lines), (path, lines)
        if row is not None:
            assert any(re.search(rf"\b{row}\b", line) for line in lines), (path, row, lines)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("harm", ["none", "no config", "not json", "a list", "no layers", "unknown", "pickle only"])
def test_bad_model_folders_are_refused(tmp_path, capsys, harm):
    folder = tmp_path / "model"
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 64,
              "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
              "vocab_size": 32}  # fmt: skip
    if harm != "none":
        folder.mkdir()
        text = {"not json": "{", "a list": "[]"}.get(harm)
        if harm == "no layers":
            del config["num_hidden_layers"]
        if harm == "unknown":
            config["architectures"] = ["MambaForCausalLM"]
        if harm != "no config":
            (folder / "config.json").write_text(text or json.dumps(config))
        if harm == "pickle only":
            (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC | {"model": str(folder), "output": str(tmp_path / "out")}))
    code, lines = outcome(capsys, path, "run")
    assert code == 2 and lines and all(line.startswith("layersweep: model") for line in lines), lines
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["resume", "/nowhere/at-all"], ["report", "/nowhere/at-all"], ["export", "/nowhere", "full", "-o", "/tmp/x"],
     ["compare", "/nowhere/a", "/nowhere/b"], ["run", "/nowhere.yaml"], ["plan", "/"]],
)  # fmt: skip
def test_bad_arguments_are_refused(capsys, arguments):
    assert main(arguments) == 2
    assert all(line.startswith("layersweep: ") for line in capsys.readouterr().err.splitlines())
