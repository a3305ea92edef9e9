"""Bad specs are refused with field, reason and fix, before anything starts; good ones resolve."""

import subprocess
import sys

import pytest
import yaml

from layersweep.cli import DEMO, main
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.layers import resolve_layers
from layersweep.orchestrator.spec.load import load_spec, parse_spec
from tests.helpers.specs import demo


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ((5, 0), (0, 5)),
        ("1:4", (1, 2, 3)),
        ("::2", (0, 2, 4)),
        ("-2:", (4, 5)),
        ("middle:2", (2, 3)),  # [6/2 - 1, 6/2 + 1)
        ("middle:6", (0, 1, 2, 3, 4, 5)),
    ],
)
def test_layers_of_a_six_layer_model(chosen, expected):
    assert resolve_layers(chosen, 6) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"training__prompt_per_step": 3}, "training.prompt_per_step: unknown key. Did you mean prompts_per_step?"),
        ({"learning_rate": 1e-3}, "learning_rate: unknown key. Did you mean training.learning_rate?"),
        ({"steps": 3}, "steps: unknown key. Did you mean training.steps?"),
        ({"task__bad_rows": "skip"}, "task.bad_rows: unknown key. Did you mean task.data.bad_rows?"),
        ({"task__overlong_prompts": "drop"}, "unknown key. Did you mean task.data.overlong_prompts?"),
        ({"algorithm__clip_hi": 1}, "algorithm.clip_hi: unknown key. Did you mean clip_high?"),
        ({"algorithm__type": "grp"}, "Did you mean grpo?"),
        ({"algorithm": "gsp"}, "algorithm.type: no 'gsp' here; one of cispo, custom, dapo, "),
        ({"evaluation__suites": [{"name": "a", "samples": 0}]}, "evaluation.suites[0].samples: "),
        ({"evaluation__suites": [{"name": "a"}, {"name": "a"}]}, "suite names must differ, 'a' is used twice"),
        ({"layers": "al"}, "layers: cannot read 'al'; write all, a list such as [0, 7, 13], start:stop:step, middle:k"),
        ({"layers": {"a": 1}}, "layers: cannot read {'a': 1}"),
        ({"layers": [1, 1]}, "layers: names a layer twice"),
        ({"training__group_size": 1}, "training.group_size: "),
        ({"training__minibatches": 5}, "minibatches: 5 does not divide prompts_per_step 32"),
        ({"training": None}, "training: needs a mapping of fields, got None"),
        ({"name": "../x"}, "name: "),
        ({"resources": {"device": "cuda"}}, "needs gpus above 0"),
        (
            {"resources": {"engine": {"gpus": 1}, "trainer": {"gpus": 0.5}, "trainer_ranks": 2}},
            "trainer.gpus: 0.5: two of 2 ranks could meet on one GPU",
        ),
        ({"seeds": [0, 0]}, "seeds: seeds must differ"),
        ({"layers": None}, "layers: null leaves nothing to sweep"),
        ({"sweep": [{"layers": "al"}]}, "sweep[0].layers: cannot read 'al'"),
        ({"sweep": [{"layers": [[3, 3]]}]}, "sweep[0].layers: names a layer, or a set of layers, twice"),
        ({"sweep": [{"layers": {"search": {}}}]}, "sweep[0].layers: a search is of whole layers"),
        ({"sweep": [{"layers": {"random": {"sets": 2}}}]}, "sweep[0].layers.random.size: required"),
        ({"sweep": [{"layers": {"random": {"size": 2}, "all_but": [1]}}]}, "sweep[0].layers: give one of all_but and"),
        ({"sweep": [{"layers": [1], "modules": "("}]}, "sweep[0].modules: '(' is neither attention, mlp, norms nor"),
        ({"sweep": [{"layers": [1], "module": "mlp"}]}, "sweep[0].module: unknown key. Did you mean modules?"),
        (
            {"sweep": [{"modules": "lm_head", "lora": {"rank": 8}}]},
            "sweep[0].lora: adapters are of matrices in layers; name some as `layers`",
        ),
        ({"sweep": [{}]}, "sweep[0].layers: name some, or what outside of layers is trained"),
        ({"rollout": {"sleep": True}}, "rollout.sleep: makes room for trainers on an engine's GPU, and with"),
        (
            {"rollout__tensor_parallel_size": 2},
            "rollout.tensor_parallel_size: 2 GPUs, and engines are on CPUs, as resources.engine.gpus is 0; set it to 1",
        ),
        ({"rollout": {"cuda_graphs": True}}, "rollout.cuda_graphs: engines are on CPUs, as resources.engine.gpus is 0"),
        ({"rollout": {"cuda_graphs": True, "sleep": True}}, "rollout.cuda_graphs: not with sleep"),
        ({"rollout": {"cuda_graphs": True, "tensor_parallel_size": 2}}, "rollout.cuda_graphs: not for engines that"),
        ({"algorithm": {"type": "gigpo"}}, "algorithm.type: gigpo compares the steps of episodes"),
        (
            {"algorithm": "dapo", "task": {"type": "gridworld"}},
            "algorithm.max_num_gen_batches: dynamic sampling replaces",
        ),
        (
            {"training__optimizer": "muon", "deepspeed": {"full_zero_stage": 2}},
            "deepspeed.full_zero_stage: 2: Muon works on whole matrices",
        ),
    ],
)
def test_bad_specs_name_field_and_fix(changes, expected):
    with pytest.raises(SpecError) as error:
        parse_spec(demo(**changes))
    assert expected in str(error.value)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("name", ["dr_grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "reinforce_plus_plus"])
def test_an_algorithm_is_changed_by_its_name(name):
    spec = parse_spec(demo(algorithm=name))
    assert spec.algorithm.type == name and spec == parse_spec(demo(algorithm={"type": name}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers": [99]}, "layers: the model has layers 0 to 5, not 99"),
        ({"model": "/nowhere/at/all"}, "model.path: there is no folder /nowhere/at/all"),
        ({"output": "/proc/nowhere"}, "output: cannot write to /proc/nowhere"),
        ({"evaluation__suites": [{"name": "a", "prompts": 100_000}]}, "evaluation.suites[0]: "),
    ],
)
def test_a_plan_refuses_what_is_not_there(changes, expected):
    with pytest.raises(SpecError, match="^" + expected.replace("[", r"\[").replace("]", r"\]")):
        make_plan(parse_spec(demo(**changes)))


@pytest.mark.parametrize("broken", ["", "[1, 2", "just text", "- a\n- b", "name: \x00"])
def test_files_that_are_no_spec(tmp_path, broken):
    path = tmp_path / "sweep.yaml"
    path.write_text(broken)
    with pytest.raises(SpecError):
        load_spec(path)


def test_bad_input_exits_2_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = tmp_path / "sweep.yaml"
    for changes in ({"layers": [99]}, {"output": "deep/er", "model": "/nowhere"}, {"training__group_size": 1}):
        spec.write_text(yaml.safe_dump(demo(**changes)))
        assert main(["run", str(spec)]) == 2
        assert capsys.readouterr().err.startswith("layersweep: ")
    assert sorted(tmp_path.iterdir()) == [spec]


def test_the_demo_plan():
    """6 layers and full; a layer of hidden 64, 2 heads and 1 KV head of 32, intermediate 128 has
    64 * (2 * 64 + 2 * 32) attention + 2 * 64 + 2 * 32 norms + 3 * 64 * 128 MLP = 37,056 parameters; the model adds
    13 tokens (digits, =, padding, end) * 64 and the final norm's 64."""
    plan = make_plan(load_spec(DEMO))
    assert {run.name for run in plan.runs} == {
        f"{selection}-seed{seed}" for selection in ("full", *(f"layer-{k:02d}" for k in range(6))) for seed in (0, 1, 2)
    }
    assert plan.trainable_parameters(plan.runs[1].selection) == 37_056
    assert plan.trainable_parameters(plan.runs[0].selection) == 6 * 37_056 + 13 * 64 + 64
    assert plan.push_bytes(plan.runs[1].selection) == 4 * 37_056


def test_planning_and_help_import_nothing_heavy():
    code = (
        "import sys, layersweep.cli as c; c.main(['plan']); "
        "heavy = ('torch', 'vllm', 'deepspeed', 'ray', 'transformers', 'scipy', 'pandas'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
