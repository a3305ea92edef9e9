"""Bad specs, data files, tables and model folders by the hundred: exit code 2, a field, a reason, nothing written.

Counted: 250 random specs, about 600 from every field times every wrong kind of value, and the lists below.
"""

import contextlib
import copy
import math
import os
import re
import signal
import subprocess
import sys
import typing
from collections.abc import Iterator

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from layersweep.cli import DEMO, main
from layersweep.orchestrator.spec.schema_docs import models_of
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.orchestrator.spec.yaml_core import write_yaml

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


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail the test where a command hangs."""

    def hangs(*_) -> None:
        raise AssertionError(f"no end after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(capsys, path, command: str = "plan") -> tuple[int, list[str]]:
    """Exit code and lines of standard error; an exception fails the test by itself."""
    capsys.readouterr()
    with within(120):
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


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[type]]]:
    """Path and basic types of every field of the spec, unions left out whose branches need a `type`."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        inner = models_of(model, name)
        if not inner:
            yield path, list(basic_types(field.annotation))
        elif len(inner) == 1 and path not in ("layers", "sweep", "combine", "evaluation.suites", "tracking.wandb",
                                              "tracking.mlflow"):  # fmt: skip
            yield from fields(inner[0], f"{path}.")


def basic_types(annotation: object) -> Iterator[type]:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        yield typing.Literal
    elif typing.get_origin(annotation) in (tuple, list):
        yield tuple
    elif arguments:
        for argument in arguments:
            yield from basic_types(argument)
    elif isinstance(annotation, type):
        yield annotation


def wrong_values(types: list[type]) -> list[object]:
    """Values that a field of these types cannot have."""
    wrong: list[object] = [{"a": 1}]
    if tuple not in types:
        wrong += [[[1]], [3, "x"]]
    if str not in types and tuple not in types:
        wrong += ["nothing of the kind", "1:4", -(10**30)]
    if int in types or float in types:
        wrong += [math.nan, math.inf, -math.inf, -1, "one", "0x", ".", "1,5", 2**63, 1e20, 10**18]
    if int in types and float not in types:
        wrong += [1.5, "1.5"]
    if bool in types:
        wrong += [2, "maybe", 0.5]
    return wrong


SUITE = {"name": "all", "prompts": 8}
FIELDS = [
    *((path, types) for path, types in fields(SweepSpec) if path not in ("layers", "name")),
    *((f"algorithm.{name}", [float]) for name in ("clip_low", "clip_high", "kl_coefficient")),
    *((f"evaluation.suites[0].{name}", [int]) for name in ("prompts", "final_prompts", "samples")),
    ("evaluation.suites[0].temperature", [float]),
]


@pytest.mark.parametrize(("path", "types"), FIELDS, ids=[path for path, _ in FIELDS])
def test_every_field_refuses_every_wrong_kind_of_value(tmp_path, capsys, path, types):
    """The refusal begins with the field. Without a value that is refused a field would be no field."""
    for value in wrong_values(types):
        text = write_yaml(value).strip().removesuffix("...").strip()
        flow = yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("...").strip()
        capsys.readouterr()
        with within(120):
            code = main(["plan", f"{path}={flow}", f"output={tmp_path}/out"])
        lines = capsys.readouterr().err.splitlines()
        assert code == 2, (path, text)
        assert any(line.startswith(f"layersweep: {path}") for line in lines), (path, text, lines)
    assert not (tmp_path / "out").exists()


BAD_VALUES = {
    "name": ["../x", "", ".hidden", "a b", "a/b", "x" * 101, "a\n", "ü", 3, None, ["a"], "-x", "~"],
    "model": ["s3://bucket/model", {"type": "pretrained", "path": "/nowhere", "chat_template": ""},
              {"type": "tiny", "path": "x"}, "$MODEL", "s3:/bucket/model", "x ", 3, [], {}, "", "a\nb",
              "file:///nowhere", "~nosuch/x", "/dev/null", {"type": "pretrained", "path": ""},
              {"type": "pretrained", "path": "a/b", "revision": ""}, {"type": "tiny", "warmup_batch": 10**9},
              {"type": "tiny", "warmup_steps": 2**63}, {"type": "pretrained", "path": "a\0b"},
              {"type": "pretrained", "path": "/nowhere", "chat_template": "/dev/zero"},
              {"type": "pretrained"}, {"type": "nothing"}, {"path": "x"}, {"type": "tiny", "layers": 0},
              {"type": "tiny", "layers": -1}, {"type": "pretrained", "path": 3}, None],
    "task": [None, 3, "math", {}, {"type": 3}, {"type": "maths"}, {"type": "math"}, {"type": "math", "data": {}},
             {"type": "sort_digits", "x": 1}, {"type": "math", "data": {"path": ""}},
             *({"type": "math", "data": {"path": path}} for path in ("foo://x", "a\nb", "x::foo://y.jsonl", "\x7f",
               "fo o://x", "s4://bucket/x.jsonl", "file://", "/dev/zero", "http//x.jsonl")),
             {"type": "math", "data": {"path": "x.jsonl"}, "processes": 10**6},
             {"type": "math", "data": {"path": "x.jsonl", "subsample": 2**63}},
             {"type": "math", "data": {"path": "x.jsonl", "subsample_seed": 2**32}},
             {"type": "math", "data": {"path": "x.jsonl"}, "cpu_seconds": 1e20},
             {"type": "textarena", "game": "a/b"}],
    "algorithm": [None, "gpro", {"type": "gpro"}, {"type": "custom"}, {"type": "custom", "path": "nothing.There"},
                  {"type": "custom", "path": "os.path"}, {"type": "grpo", "clip_high": -1}],
    "layers": [{"search": {"budgets": 0.3}}, {"search": {"budget": "30%"}}, {"search": {"goal": 3}}, "al", "",
                   "1:2:0", "::", "-:", "middle:0", "middle:7", "middle:", "middle:x", "9:", "a:b", "1::2::3",
               "1:" + "9" * 5000, "٣:٤", [], [0, 0], [99], [-1], [1.5], ["a"], [True], [None], True, 6, -1, 10**30, {},
               {"a": 1}, {"search": 3}, {"search": {"budget": 0}}, {"search": {"budget": 1.1}},
               {"search": {"goal": "worst"}}, {"search": {"goal": "top 0"}}, {"search": {"budget": 1e-9}},
               {"search": {}, "x": 1}, {"search": {"goal": "top 99"}}, [[1]], "all ", "All"],
    "sweep": [[{"layers": {"all_but": 3}}], [{"layers": {"random": {"sizes": 2}}}], 3, "all", {}, [{}], [[1]],
                   [{"layers": []}], [{"layers": [[]]}], [{"layers": [[1, "x"]]}],
              [{"layers": "blocks:0"}], [{"layers": 3, "modules": 3}], [{"layers": [[True]]}], [{"layers": [1]}],
              [{"layers": [[1, 99]]}], [{"layers": [1], "modules": "nothing"}], [{"layers": [1], "modules": "["}],
              [{"modules": ""}], [{"layers": [1], "modules": "mlp"}] * 2, [{"modules": "self_attn"}],
              [{"layers": "all", "lora": 8}], [{"layers": [1], "modules": "x" * 5000}],
              [{"layers": [1], "lora": {}}], [{"layers": [1], "lora": {"rank": 0}}], [{"lora": {"rank": 8}}],
              [{"layers": [1], "lora": {"rank": 8, "alpha": 0}}], [{"layers": [1], "lora": {"rank": 10**30}}],
              [{"layers": [[1, 2], [2, 1]]}], [{"layers": "9:"}], [{"layers": {"all_but": []}}],
              [{"layers": {"all_but": ["a"]}}], [{"layers": {"all_but": [True]}}], [{"layers": {"all_but": 10**30}}],
              [{"layers": {"all_but": [-1]}}], [{"layers": {"random": {}}}], [{"layers": {"random": {"size": 0}}}],
              [{"layers": {"random": {"size": 2}, "all_but": [1]}}], [{"layers": {"random": {"size": 10**30}}}],
              [{"layers": {"random": {"size": 2, "sets": 10**4}}}], [{"layers": {"random": {"size": 2, "x": 1}}}],
              [{"layers": {"random": None}}]],
    "controls": [{"type": "supervised", "of": "full"}, ["supervised"], [{"of": "full"}],
                 [{"type": "supervised"}], [{"type": "supervised", "of": -1}], [{"type": "supervised", "of": []}],
                 [{"type": "random", "of": "full"}], [{"type": "supervised", "of": "layer"}],
                 [{"type": "supervised", "of": "full", "seed": 1}],
                 [{"type": "random_reward", "of": "full", "probability": 1}],
                 [{"type": "learning_rate", "of": "full", "factors": 3}], [{"type": "learning_rate", "of": 1}]],
    "factors": [3, [], {"algorithm": "grpo"}, {3: [1, 2]}, {"training..steps": [1, 2]}, {"training.steps ": [1, 2]},
                {"model.layers": {"a b": 4, "c": 5}}, {"training.steps": {"a": 9, "b": 9}}, {"training.stepz": [8, 9]},
                {"seeds": list(range(300))}, {"model.seed": list(range(20)), "seeds": list(range(20))}],
    "seeds": ["1:3", [], [-1], [2**32], [10**30], [0.5], ["a"], True, [True], [None], [0, 0], "0", {}, -1],
    "combine": [3, "only", {}, [{}], [{"only": "best"}], [{"only": "best 0"}], [{"only": "best -1"}], [{"middle": 0}],
                [{"only": "best 99"}], [{"middle": 7}], [{"worst": 7}], [{"only": "best 2", "middle": 2}],
                [{"boost": "middle 2"}], [{"only": "best 2"}, {"only": "best 2"}], [{"worst": 2}, {"only": "worst 2"}],
                [{"best": 2}], [{"only": "best " + "9" * 5000}], [{"only": None}]],
    "output": ["", "/proc/nowhere", "~nosuch/x", "http://127.0.0.1:9/x", "https://nowhere.invalid/x", "foo://x", 3,
               "/dev/null/x", "/etc/passwd", "\0", "x" * 5000, None, "s3://", "file:///proc/x", "memory://x",
               "memory://",
               "simplecache::memory://x", "simplecache::file:///tmp/x", "a\nb", "a\rb", "a\x1b[31mb", "s3://b/a\nb",
               "$HOME/x", "${HOME}/x", "runs/$USER", "$(pwd)/x", " runs", "runs ", "s3:/bucket/x",
               "local:///dev/null/x", "file://~nosuch/x", "file://", "foo::bar://x"],
    "profile": ["/nowhere", "/etc/passwd", "/etc", "/dev/null", "~nosuch", "foo://x", "", 3, "\0", "/proc/self/mem",
                "http://127.0.0.1:9/x", __file__],
    "evaluation": [{"suites": [SUITE | {"stop": [""]}]}, {"suites": [SUITE | {"name": ".."}]},
                   {"suites": [SUITE | {"stop": "x"}]}, {"suites": ["all"]}, {"suites": {"all": SUITE}}, 3,
                   {"suites": []}, {"suites": [{}]}, {"suites": [{"name": "a/b"}]}, {"suites": [SUITE, SUITE]},
                   {"suites": [SUITE | {"temperature": 0}]}, {"seed_sd": -0.1}, {"seed_sd": math.nan}, {"every": -1},
                   {"suites": [SUITE | {"prompts": 10_000_000}]}, {"suites": {"name": "a"}},
                *({"suites": [SUITE | {name: 2**63}]} for name in ("prompts", "final_prompts", "samples", "top_k",
                  "max_response_tokens", "temperature")), {"suites": [SUITE | {"samples": 10**5}]},
                {"suites": [SUITE | {"name": "a\n"}]}, {"every": 2**63}, {"finalists": 2**63}, {"seed_sd": 1e20}],
    "training": [{"learning_rate": {"tune": [1e-4, 1e-3], "steps": 5, "layer": 1e-3}}, {"stop": "x"},
                 {"betas": [0.9, 0.9, 0.9]}, {"learning_rate": [1e-4, 1e-3]}, {"lr": 1e-3}, None, [], {"steps": 3,
                 "warmup_steps": 3}, {"group_size": 1}, {"minibatches": 5},
                 {"learning_rate": {"tune": [1e-4]}}, {"learning_rate": {"tune": [1e-4, 1e-4], "steps": 5}},
                 {"learning_rate": {"layer": 0}}, {"learning_rate": -1e-5}, {"learning_rate": math.inf},
                 {"learning_rate": {}, "x": 1}, {"steps": 10**30}, {"steps": 10**9}, {"steps": 2**63},
                 {"group_size": 1e10}, {"group_size": 10**5}, {"prompts_per_step": 10**9}, {"weight_decay": 1e20},
                 {"learning_rate": 1e20}, {"learning_rate": {"full": 1e20}}, {"stop": [""]}, {"epochs": 2**63},
                 {"learning_rate": {"tune": [1e-4, 1e20], "steps": 5}}, {"micro_batch_tokens": 10**18}],
    "rollout": [{"max_num_batched_tokens": 63}, {"kv_cache_memory_mib": 1, "max_model_len": 1024},
                   {"max_num_seqs": 2**63}, {"kv_cache_memory_mib": 1e20}, {"tensor_parallel_size": 10**6},
                {"max_model_len": 63}, {"max_model_len": 2**63}],
    "resources": [{"engine": {"gpus": 1.5}, "trainer": {"gpus": 1}}, {"engine": 1}, {"engines": 10**6},
                   {"trainer": {"cpus": 1e20}}, {"trainer": {"cpus": -1}}, {"trainer_ranks": 2**63},
                  {"engine": {"gpus": 1e20}}, {"engine": {"cpus": 1e-9}}, {"trainer": {"gpus": 1e-5}},
                  {"wait_for_nodes": 1e20}, {"concurrent_runs": 10**9}],
    "recovery": [{"patience": 1e20}, {"keep": 2**63}, {"retries": 10**10}, {"checkpoint_every": 2**63}],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD_VALUES.items() for v in values], ids=str)
def test_values_that_are_refused(tmp_path, capsys, monkeypatch, field, value):
    monkeypatch.chdir(tmp_path)
    extra = {"combine": [{"only": "best 2"}]} if field == "profile" else {}
    if field == "task" and isinstance(value, dict) and value.get("type") == "math":
        extra = {"model": "Qwen/Qwen3-1.7B-Base"}
    if field == "evaluation" and isinstance(value, dict):
        value = {"suites": [SUITE]} | value
    if value == {"steps": 10**9}:
        extra = {"evaluation": {"suites": [SUITE], "every": 1}}
    path = tmp_path / "spec.yaml"
    path.write_text(write_yaml(SPEC | {"output": "out"} | extra | {field: value}))
    code, lines = outcome(capsys, path)
    assert code == 2, lines
    expected = "evaluation.every" if "evaluation" in extra else field
    assert all(re.match(rf"layersweep: ({expected}|s3://)", line) for line in lines) and lines, lines
    assert all(len(line) < 1000 and "^" not in line for line in lines)
    assert not re.search("pattern|tuple|dictionary|inputs are|[a-z]: Input|Field required|constrained", str(lines))
    assert sorted(tmp_path.iterdir()) == [path]


MESSAGES = [
    ({"training": {"betas": [0.9, 0.9, 0.9]}}, "training.betas: takes at most 2 in its list, got [0.9, 0.9, 0.9]"),
    ({"training": {"stop": "x"}}, "training.stop: needs a list, such as ['x'], got 'x'"),
    ({"seeds": "0, 1"}, "seeds: needs a list, such as [0, 1], got '0, 1'"),
    ({"layers": {"search": []}}, "layers.search: needs a mapping of fields, got []"),
    ({"combine": [{"middle": 7}]}, "combine[0]: layers-middle-7 needs 7 layers, the model has 6"),
    ({"name": 3}, "name: needs text, as a number is in quotes ('3'), got 3"),
    ({"task": "sort_digits"}, "task: needs a mapping of fields, such as {type: sort_digits}, got 'sort_digits'"),
    ({"model": {"layers": 3}}, "model: needs a `type`, one of pretrained, tiny"),
    ({"model": {"type": "tiny", "path": "x"}}, "model.path: unknown key. Only pretrained takes it"),
    ({"training": {"learning_rate": {"tune": [1e-4, 1e-3], "steps": 5, "layer": 1}}},
     "training.learning_rate.layer: unknown key. Only {layer, full} takes it"),
    ({"layers": {"search": {"budgets": 0.3}}}, "layers.search.budgets: unknown key. Did you mean budget?"),
    ({"controls": [{"type": "supervised", "of": "layer"}]},
     "controls[0].of: the sweep trains no layer; did you mean layers?"),
    ({"controls": [{"type": "supervised", "of": "full", "factors": [3]}]},
     "controls[0].factors: unknown key. Only learning_rate takes it"),
    ({True: 4}, "True: the name of a field is text; correct it"),
    ({"\u00a0name": "x"}, "'\\xa0name': unknown key. Did you mean name?"),
    ({"factors": {"training.stepz": [8, 9]}}, "factors: training.stepz: unknown key. Did you mean steps?"),
    ({"factors": {"training.steps": {"a": 9, "b": 9}}},
     "factors: demo-a and demo-b are the same sweep; leave one out"),
    ({"factors": {"seeds": list(range(300))}}, "factors: they make 300 sweeps, and more than 256 are taken for a slip"),
    ({"output": "$HOME/x"},
     "output: $HOME/x: variables of the shell such as $HOME are not expanded; write the path out"),
    ({"output": "s3:/b/x"}, "output: s3:/b/x: a URI has two slashes, s3://b/x"),
    ({"evaluation": {"suites": [SUITE | {"prompts": 500_000}]}},
     "evaluation.suites[0]: sort_digits: selection has 40000 prompts of 6 digits (evaluation.suites[0].prompts asks "
     "for 500,000)"),
    ({"resources": {"engine": {"gpus": 1.5}, "trainer": {"gpus": 1}}},
     "resources.engine.gpus: 1.5: Ray gives a share of one GPU or whole GPUs; round it"),
    ({"algorithm": {"type": "custom", "path": "a.py"}},
     "algorithm.path: 'a.py' names no object; write it as my_file.py:name, or my_module.name"),
    ({"rollout": {"max_num_batched_tokens": 63}},
     "rollout.max_num_batched_tokens: bounds the window to 63 tokens, and the engine's self-check needs 64"),
    ({"rollout": {"kv_cache_memory_mib": 1, "max_model_len": 1024}},
     "rollout.kv_cache_memory_mib: one sequence of the window's 1,024 tokens takes 2 MiB; raise it from 1, or lower "
     "rollout.max_model_len"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), MESSAGES, ids=[says[:60] for _, says in MESSAGES])
def test_what_a_refusal_says(tmp_path, capsys, monkeypatch, change, says):
    """In YAML's words, not Python's; the cache takes 2 * 6 layers * 32 * 4 bytes = 1.5 KiB a token."""
    monkeypatch.chdir(tmp_path)
    change = {name: (SPEC[name] | value if name == "training" else value) for name, value in change.items()}
    path = tmp_path / "spec.yaml"
    path.write_text(write_yaml({"output": "out"} | {k: v for k, v in SPEC.items() if k != "output"} | change))
    code, lines = outcome(capsys, path)
    assert code == 2 and f"layersweep: {says}" in lines, lines


def test_factors_of_a_list_s_items_have_names(tmp_path, capsys):
    """`training.betas[1]` in the name of a folder is `betas.1`."""
    assert main(["plan", "factors={'training.betas[1]': [0.95, 0.99]}", f"output={tmp_path}/out"]) == 0
    assert "demo-betas.1-0.95" in capsys.readouterr().out


def test_a_yaml_error_names_line_and_column(tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text("name: a\nmodel: [b\ntask: c\n")
    assert outcome(capsys, path)[1] == [
        f"layersweep: {path}: not YAML: line 3, column 5: while parsing a flow sequence, "
        "expected ',' or ']', but got ':'"
    ]
    path.write_bytes("name: ä".encode("latin-1"))
    assert outcome(capsys, path)[1] == [
        f"layersweep: {path}: not YAML: unexpected end of data at byte 6; save it as UTF-8 text"
    ]


TEXTS = [
    "", "[]", "3", "name: [", "\t", "name: !!python/object/apply:os.system ['true']", "\x00", "a: &a [*a]", "{}",
    "[" * 20_000, "{a: " * 20_000, "a: " + "[" * 300 + "]" * 300, "- " * 5_000, "a: 1\na: 2", "name: a\nname: a",
    "training: {steps: 1, steps: 2}", "--- a\n--- b", "%YAML 3.0\n---\na: 1", "*a", "a: *b", "&a", "? [1]\n: 2",
    "!!binary x", "!!set {a, b}", "!!timestamp 2001-01-01", "!!int x", "'", '"\\x"', "a:\n\t- b", "\ufeff", "a: b: c",
    "9" * 5_000, "seeds: " + "9" * 5_000, "~", "null", "text", "<<: 3", "<<: [3]", "a: # \x07",
    "x: &x {y: &y [1,2,3]}\nz: [*x, *x, *x, *y]", "\x80", "1: 2", "null: 3", "true: false", "? {}\n: 1",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_that_are_no_spec(tmp_path, capsys, text):
    path = tmp_path / "spec.yaml"
    path.write_bytes(text.encode())
    code, lines = outcome(capsys, path)
    assert code == 2 and lines and all(line.startswith("layersweep: ") and len(line) < 1000 for line in lines), lines


def test_bytes_that_are_no_text(tmp_path, capsys):
    for i, content in enumerate(
        [b"\xff\xfe", bytes(range(256)), b"\x80\x04.", "name: a".encode("utf-16"), b"PK\x03\x04"]
    ):
        path = tmp_path / f"{i}.yaml"
        path.write_bytes(content)
        code, lines = outcome(capsys, path)
        assert code == 2 and "not YAML" in lines[0], lines


def test_aliases_that_grow_to_a_billion_items(tmp_path, capsys):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    path = tmp_path / "spec.yaml"
    path.write_text("\n".join([*lines, "layers: *a9", "model: *a9", "seeds: *a9"]))
    code, lines = outcome(capsys, path)
    assert code == 2 and all(len(line) < 1000 for line in lines)


def test_a_closed_pipe_ends_quietly():
    """The reader takes one line of thousands and is gone: 141, as of a program that SIGPIPE ends."""
    command = f"{sys.executable} -m layersweep schema | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("name\n", "", 141)


def test_a_home_that_cannot_be_made(tmp_path):
    """`plan` needs none; `run` says so before anything is written."""
    environment = os.environ | {"HOME": "/dev/null/home", "XDG_CACHE_HOME": ""}
    for command, code, message in (("plan", 0, ""), ("run", 2, "layersweep: HOME: the home folder cannot be made")):
        done = subprocess.run([sys.executable, "-m", "layersweep", command, f"output={tmp_path}/out"], timeout=60,
                              env=environment, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == code and done.stderr.startswith(message) and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["resume", "/nowhere/at-all"], ["report", "/nowhere/at-all"], ["export", "/nowhere", "full", "-o", "/tmp/x"],
     ["compare", "/nowhere/a", "/nowhere/b"], ["run", "/nowhere.yaml"], ["plan", "/"]],
)  # fmt: skip
def test_bad_arguments_are_refused(capsys, arguments):
    assert main(arguments) == 2
    assert all(line.startswith("layersweep: ") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("override", [
    "model.layers=100000", "model.layers=99999999999", "model.kv_heads=3", "model.seed=4294967296",
    "training.prompts_per_step=true", "training.learning_rate.layer=true", "output=hdfs://x/y", "output=zip://a.zip",
])  # fmt: skip
def test_sizes_truth_values_and_filesystems_that_cannot_be(tmp_path, capsys, monkeypatch, override):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"layersweep: {override.partition('=')[0]}: ") and len(line) < 400, line
