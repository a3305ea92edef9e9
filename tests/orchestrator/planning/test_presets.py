"""The sweeps of the study plan themselves on a machine without GPU, network, data and weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from layersweep.cli import DEMO
from layersweep.orchestrator.planning import model_architecture as model_shape
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import load_spec, parse_spec
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.known_models import KNOWN_MODELS

FOLDER = Path(DEMO).parent
# What the study trained: layers of the model, layers scanned (besides full), algorithm.
STUDY = {
    "qwen3-1.7b-numinamath-grpo": (28, 28, "grpo"),
    "qwen3-4b-numinamath-grpo": (36, 36, "grpo"),
    "qwen3-8b-numinamath-grpo": (36, 36, "grpo"),
    "qwen2.5-math-1.5b-math-drgrpo": (28, 28, "dr_grpo"),
    "qwen2.5-1.5b-alfworld-gigpo": (28, 8, "gigpo"),
    "qwen2.5-3b-alfworld-gigpo": (36, 11, "gigpo"),
    "r1-distill-qwen-7b-skywork-grpo": (28, 8, "grpo"),
}
# Parameters as the model cards and the hub state them.
TOTALS = {
    "Qwen/Qwen3-1.7B-Base": 1.72e9,
    "Qwen/Qwen3-4B-Base": 4.02e9,
    "Qwen/Qwen3-8B-Base": 8.19e9,
    "Qwen/Qwen2.5-Math-1.5B": 1.54e9,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.54e9,
    "Qwen/Qwen2.5-3B-Instruct": 3.09e9,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7.62e9,
}


@pytest.fixture
def offline(monkeypatch):
    """No hub, whether or not the machine that tests has one, and no cache of it."""

    def out_of_reach(model):
        raise model_shape.HubOutOfReach("no hub in this test")

    monkeypatch.setattr(model_shape, "resolve_source", out_of_reach)


@pytest.mark.parametrize("name", STUDY)
def test_a_preset_plans_offline(offline, name):
    depth, scanned, algorithm = STUDY[name]
    spec = load_spec(FOLDER / f"{name}.yaml")
    plan = make_plan(spec, fetch=False)
    assert spec.name == name and spec.algorithm.type == algorithm
    assert plan.architecture.layers == depth
    assert [run.selection.kind for run in plan.runs] == ["full"] + ["layer"] * scanned
    assert "the model hub is out of reach" in plan.shape_source
    assert plan.unchecked


def test_variants_differ_in_resources_alone():
    variants = ("", "-1gpu", "-8gpu", "-8gpu-colocated")
    main, *others = (load_spec(FOLDER / f"qwen3-1.7b-numinamath-grpo{v}.yaml") for v in variants)
    for spec in others:
        for section in ("model", "task", "algorithm", "layers", "training", "evaluation", "deepspeed"):
            assert getattr(spec, section) == getattr(main, section), section


def test_gpus_that_a_preset_needs_are_there():
    """Engines, the full run and the layers that train beside it fit on one GPU, or on eight."""
    for path in sorted(FOLDER.glob("*.yaml")):
        resources = load_spec(path).resources
        if not resources.on_gpu() or resources.concurrent_runs is None:
            continue
        full = (resources.full_trainer or resources.trainer).gpus * resources.full_trainer_ranks
        needed = resources.engines * resources.engine.gpus + full
        needed += (resources.concurrent_runs - 1) * resources.trainer.gpus * resources.trainer_ranks
        assert needed <= (1 if "1gpu" in path.stem else 8), path.stem


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_parameters_are_those_of_transformers_and_of_the_model_card(name):
    """transformers builds the model without memory; every tensor of a block and of the whole is counted."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = Architecture.from_config(KNOWN_MODELS[name])
    config = dict(KNOWN_MODELS[name])
    kind = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}[config.pop("architectures")[0]]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    assert shape.layer_parameters == sum(p.numel() for p in model.model.layers[0].parameters())
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.parameters == pytest.approx(TOTALS[name], rel=0.004)


def test_the_embeddings_that_are_tied():
    """Published: the smaller models tie their LM head to the embeddings, 7B and 8B do not."""
    assert {name for name, config in KNOWN_MODELS.items() if not config["tie_word_embeddings"]} == {
        "Qwen/Qwen3-8B-Base", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    }  # fmt: skip


def test_a_folder_with_a_config_alone_is_enough(tmp_path):
    config = KNOWN_MODELS["Qwen/Qwen2.5-3B-Instruct"] | {"model_type": "qwen2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = load_spec(FOLDER / "qwen3-4b-numinamath-grpo.yaml", {"model": str(tmp_path), "output": str(tmp_path)})
    plan = make_plan(spec, fetch=False)
    assert (plan.architecture.layers, plan.shape_source) == (36, "")


def test_a_run_needs_the_model_itself(offline):
    """The table is for plans: a run without weights is refused before anything starts."""
    data = load_spec(FOLDER / "qwen3-4b-numinamath-grpo.yaml").model_dump(mode="json")
    data |= {"task": {"type": "sort_digits"}, "evaluation": {"suites": [{"name": "digits", "prompts": 8}]}}
    data["training"] |= {"prompts_per_step": 8}
    spec = parse_spec(data)
    assert make_plan(spec, fetch=False).unchecked == ()
    with pytest.raises(SpecError, match="^model.path: no hub in this test"):
        make_plan(spec)


def test_other_models_of_the_hub_are_not_made_up(offline):
    spec = load_spec(FOLDER / "qwen3-4b-numinamath-grpo.yaml", {"model": "someone/some-model"})
    with pytest.raises(SpecError, match="^model.path: no hub"):
        make_plan(spec, fetch=False)


def test_data_of_this_machine_is_checked_by_a_plan(offline, tmp_path):
    task = {"type": "math", "data": {"path": str(tmp_path / "not_here.parquet")}}
    spec = load_spec(FOLDER / "qwen3-4b-numinamath-grpo.yaml", {"task": task})
    with pytest.raises(SpecError, match="^task: data.path: .*not_here.parquet does not exist"):
        make_plan(spec, fetch=False)


def test_the_command_plans_the_largest_preset_quickly_and_without_torch():
    code = (
        "import sys, layersweep.cli as c, layersweep.workers.startup.model_source as m; "
        "m.hub_resolves = lambda: False; "
        f"code = c.main(['plan', {str(FOLDER / 'qwen3-8b-numinamath-grpo.yaml')!r}]); "
        "print(code, [m for m in ('torch', 'vllm', 'ray', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "GPU-hours  about " in done.stdout and "data set AI-MO/NuminaMath-CoT of the hub" in done.stdout
