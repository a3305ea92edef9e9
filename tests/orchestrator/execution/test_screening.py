"""What a screening trains and scores, and what it goes on with; a whole one is in tests/end_to_end."""

import asyncio

import pytest

from layersweep import load_spec
from layersweep.cli import DEMO
from layersweep.orchestrator.execution.clients import MadeVariant
from layersweep.orchestrator.execution.manifest import SweepManifest
from layersweep.orchestrator.execution.screening import (
    Screening,
    ScreeningWeights,
    begin,
    cost_text,
    screened_selections,
)
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.policies.variant import Variant
from layersweep.workers.storage.run_store import RunStore


def sweep(tmp_path, **overrides):
    return make_plan(load_spec(DEMO, {"output": str(tmp_path), "seeds": [0, 1], **overrides}))


def test_it_is_one_training_step_of_many_epochs_at_the_peak_rate(tmp_path):
    """The demo has two minibatches, a warm-up and 256 prompts. Whole-model runs are not screened."""
    plan = sweep(tmp_path, layers=[1, 4], sweep=[{"modules": "embed_tokens"}])
    inner = Screening(3, prompts=100).plan(plan, None)
    training, (suite,) = inner.spec.training, inner.spec.evaluation.suites
    assert (training.epochs, training.minibatches, training.warmup_steps, training.schedule) == (3, 1, 0, "constant")
    assert training.learning_rate.layer == 1e-3 and training.prompts_per_step == plan.spec.training.prompts_per_step
    assert (suite.prompts, suite.final_prompts, suite.samples) == (100, 0, 4)
    assert inner.folder == f"{tmp_path}/demo/screening"
    assert [s.name for s in screened_selections(inner)] == ["layer-01", "layer-04", "outside-embed_tokens"]
    # 3 selections and 2 seeds, and the base once, 400 responses each
    assert "3 optimizer steps" in cost_text(plan, inner) and "2,800 responses" in cost_text(plan, inner)


def test_of_a_search_all_layers_are_screened(tmp_path):
    plan = sweep(tmp_path, layers={"search": {"budget": 0.5, "goal": "best"}})
    inner = Screening(1).plan(plan, None)
    assert len(screened_selections(inner)) == 6 and inner.rungs == []


def test_a_rate_that_trials_find_must_be_found(tmp_path):
    plan = sweep(tmp_path, **{"training.learning_rate": {"tune": [1e-3, 3e-4], "steps": 5}})
    with pytest.raises(SpecError, match="training.learning_rate: a screening needs it"):
        Screening(3).plan(plan, None)
    manifest = SweepManifest.begin(plan)
    manifest.record_learning_rates({"layer": 3e-4, "full": 1e-3})
    assert Screening(3).plan(plan, manifest).spec.training.learning_rate.layer == 3e-4


def test_a_screening_of_another_spec_is_discarded(tmp_path):
    """One of the same spec, or of one with a layer more, goes on."""
    plan = sweep(tmp_path, layers=[1])
    store = RunStore(f"{tmp_path}/demo/screening", "layer-01-seed0")
    assert begin(Screening(3).plan(plan, None)) is None
    store.write_metadata({"selection": "layer-01", "seed": 0})
    for same in (plan, sweep(tmp_path, layers=[1, 2])):
        assert begin(Screening(3).plan(same, None)) is None and store.metadata()
    said = begin(Screening(4).plan(plan, None))
    assert "discarded" in said and "training.epochs" in said and not store.metadata()
    assert begin(Screening(4).plan(plan, None)) is None


@pytest.mark.parametrize(
    "selections", [{"layers": None, "sweep": [{"layers": "all", "modules": "mlp"}]},
                   {"layers": {"search": {"budget": 0.5, "goal": "best"}}}],
    ids=["no whole layers", "search"],
)  # fmt: skip
def test_whatever_a_sweep_trains_a_screening_goes_on(tmp_path, selections):
    plan = Screening(3).plan(sweep(tmp_path, **selections), None)
    assert begin(plan) is None and begin(plan) is None and len(screened_selections(plan)) == 6


class Prober:
    """Trains at once; notes what."""

    def __init__(self):
        self.trained = []

    def train(self, batch, selection, setup) -> MadeVariant:
        self.trained.append((batch, selection.name, setup.training.epochs, setup.engine_dtype))

        async def facts():
            return {"screened_steps": 3}

        return MadeVariant(facts(), f"weights of {selection.name}")


def test_what_is_scored_is_not_trained_again(tmp_path):
    """A run of which the number of steps is known was scored; layer 4 of seed 1 is left."""
    inner, prober = Screening(3).plan(sweep(tmp_path, layers=[1, 4]), None), Prober()
    weights = ScreeningWeights(inner, prober)
    RunStore(inner.folder, "layer-01-seed1").write_metadata({"selection": "layer-01", "seed": 1, "screened_steps": 0})
    assert asyncio.run(weights.train("batch", 1)) == 1
    assert prober.trained == [("batch", "layer-04", 3, "float32")]
    assert weights.steps == {("layer-01", 1): 0, ("layer-04", 1): 3}
    assert weights.make(Variant("layer-04", ()), 1).weights == "weights of layer-04"
    assert asyncio.run(weights.train("another", 0)) == 2 and len(weights.steps) == 4
