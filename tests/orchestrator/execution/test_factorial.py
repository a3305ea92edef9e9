"""Sweeps of one spec with factors: in turn, with the base's scores taken over, stopped and resumed, compared."""

from dataclasses import replace

import pandas as pd
import pytest

from layersweep.orchestrator.execution import factorial
from layersweep.orchestrator.execution.manifest import SweepManifest
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.factorial import sweeps_of
from layersweep.orchestrator.spec.load import load_spec, parse_spec
from layersweep.orchestrator.spec.yaml_core import write_yaml
from layersweep.workers.storage.run_store import RunStore
from layersweep.workers.storage.tables import CONTRIBUTION
from tests.helpers.specs import demo

ALGORITHMS = {"algorithm": ["grpo", "gspo", "rloo"]}


class Sweeps:
    """In place of carrying a sweep out: scores of the base, a table, and the exit codes to come.

    Args:
        unscored: sweeps whose engine does not start: they end without scores, with code 1.
    """

    def __init__(self, monkeypatch, codes=(), unscored=()):
        self.codes, self.unscored, self.begun, self.scored = list(codes), set(unscored), [], []
        monkeypatch.setattr(factorial, "carry_out", self.carry_out)
        monkeypatch.setattr(factorial, "continue_sweep", self.continue_sweep)

    def carry_out(self, plan, begin, session, listen):
        begin()
        self.begun.append(plan.spec.name)
        return self._end(plan)

    def continue_sweep(self, plan, manifest, session, listen):
        self.begun.append(f"{plan.spec.name} again")
        manifest.update_spec(plan)
        return self._end(plan)

    def _end(self, plan):
        if plan.spec.name in self.unscored:
            return 1
        if not (base := scored_base(plan)).scored():
            self.scored.append(plan.spec.name)
            base.write_scores(0, "selection", "sort", pd.DataFrame({"score": [float(len(self.scored))]}))
        rows = [{"selection": f"layer-{k:02d}", "kind": "layer", "layer": k, "score": 0.1 * k, "contribution": 0.1 * k,
                 "contribution_sd": 0.05, "status": "completed", "model_layers": 6} for k in range(6)]  # fmt: skip
        with open(f"{plan.folder}/contribution.parquet", "wb") as file:
            CONTRIBUTION.write(CONTRIBUTION.frame(rows), file)
        return self.codes.pop(0) if self.codes else 0


def scored_base(plan) -> RunStore:
    """The base's store, with the metadata that a driver leaves once it is scored."""
    base = RunStore(plan.folder, "base-seed0")
    base.write_metadata({"selection": "base", "seed": 0, "status": "completed"})
    return base


def spec_of(tmp_path, factors=ALGORITHMS, **changes):
    return parse_spec(demo(factors=factors, output=str(tmp_path), **changes))


def test_sweeps_in_turn_with_one_base(tmp_path, monkeypatch, capsys):
    """The first scores the base, the others have its scores; the profiles are compared, and the worst code is told."""
    sweeps = Sweeps(monkeypatch, codes=[0, 1, 0])
    assert factorial.run(spec_of(tmp_path), None, fresh=False) == 1
    names = ["demo-grpo", "demo-gspo", "demo-rloo"]
    assert sweeps.begun == names and sweeps.scored == ["demo-grpo"]
    for name in names:
        ((key, frame),) = RunStore(str(tmp_path / "demo" / name), "base-seed0").scores()
        assert key == (0, "selection", "sort") and frame["score"].tolist() == [1.0]
        assert load_spec(str(tmp_path / "demo" / name / "sweep.yaml")).algorithm.type == name[5:]
    assert load_spec(str(tmp_path / "demo" / "sweep.yaml")).factors == {"algorithm": ("grpo", "gspo", "rloo")}
    assert (tmp_path / "demo" / "compare.html").exists()
    printed = capsys.readouterr()
    assert "demo-grpo and demo-gspo" in printed.out and "sweep 2 of 3, demo-gspo" in printed.err


def test_responses_of_the_base_come_along(tmp_path):
    one, other = (make_plan(spec) for spec in sweeps_of(spec_of(tmp_path, {"algorithm": ["grpo", "gspo"]})))
    kept = ["responses/run=base-seed0/step=000000/selection.sort.parquet", "checkpoints/prompts/selection.sort.parquet"]
    for path in (*kept, "responses/run=full-seed0/step=000030/selection.sort.parquet"):
        file = tmp_path / "demo" / "demo-grpo" / path
        file.parent.mkdir(parents=True)
        file.write_bytes(path.encode())
    factorial.take_over_base(one, other)
    there = [path for path in (tmp_path / "demo" / "demo-gspo").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path / "demo" / "demo-gspo")) for path in there) == sorted(kept)
    assert all(path.read_bytes().decode().endswith("selection.sort.parquet") for path in there)


@pytest.fixture(scope="module")
def plan():
    return make_plan(parse_spec(demo()))


@pytest.mark.parametrize(
    ("factors", "same"),
    [
        ({"algorithm": ["grpo", "gspo"]}, True),
        ({"training.steps": [10, 20]}, True),
        ({"training.learning_rate": [1e-3, 1e-4]}, True),
        ({"task": ["sort_digits", "count_bits"]}, False),
        ({"model.seed": [0, 1]}, False),
        ({"training.max_response_tokens": [7, 8]}, False),
        ({"training.dtype": ["float32", "bfloat16"]}, False),
        ({"evaluation.suites[0].samples": [4, 8]}, False),
        ({"seeds": {"first": [0, 1], "later": [2, 3]}}, False),
        ({"rollout.dtype": ["auto", "bfloat16"]}, False),
    ],
)
def test_what_has_the_same_base(plan, tmp_path, factors, same):
    factors = {name: [{"type": v} for v in values] if name == "task" else values for name, values in factors.items()}
    one, other = (replace(plan, spec=spec) for spec in sweeps_of(spec_of(tmp_path, factors)))
    assert factorial.same_base(one, other) is same


@pytest.mark.parametrize(
    ("factors", "same"),
    [
        ({"algorithm": ["grpo", "dapo"]}, True),  # what differs in the request itself, the request tells
        ({"training.steps": [10, 20]}, True),
        ({"rollout.staleness": [0, 1]}, True),
        ({"task": ["sort_digits", "count_bits"]}, False),  # a tiny model is made for its task
        ({"model.seed": [0, 1]}, False),
        ({"training.dtype": ["float32", "bfloat16"]}, False),
        ({"rollout.dtype": ["auto", "bfloat16"]}, False),
    ],
)
def test_what_has_the_same_engine(plan, tmp_path, factors, same):
    factors = {name: [{"type": v} for v in values] if name == "task" else values for name, values in factors.items()}
    specs = sweeps_of(spec_of(tmp_path, factors))
    one, other = (factorial.first_rollouts("f", replace(plan, spec=spec)) for spec in specs)
    assert (one.engine == other.engine) is same and one.folder == other.folder == "f/first_rollouts"
    assert [store.steps for store in (one, other)] == [1 + spec.rollout.staleness for spec in specs]


def test_a_stop_stops_all_and_resume_goes_on(tmp_path, monkeypatch, capsys):
    """Stopped in the second of three: the first two are gone on with, the third begins; a seed that is added every
    sweep gets."""
    sweeps = Sweeps(monkeypatch, codes=[0, 3])
    (tmp_path / "factors.yaml").write_text(write_yaml(spec_of(tmp_path).model_dump(mode="json")))
    with pytest.raises(SpecError, match="demo: no sweep has begun there; start them with `layersweep run`"):
        factorial.resume(str(tmp_path / "factors.yaml"), None, None)
    assert factorial.run(spec_of(tmp_path), None, fresh=False) == 3
    assert sweeps.begun == ["demo-grpo", "demo-gspo"] and not (tmp_path / "demo" / "compare.html").exists()
    assert "stopped in sweep 2 of 3; `layersweep resume" in capsys.readouterr().err
    sweeps.begun.clear()
    assert factorial.resume(str(tmp_path / "demo"), None, None) == 0
    assert sweeps.begun == ["demo-grpo again", "demo-gspo again", "demo-rloo"] and sweeps.scored == ["demo-grpo"]
    assert (tmp_path / "demo" / "compare.html").exists()
    assert factorial.resume(str(tmp_path / "demo"), None, None, {"seeds": [0, 1]}) == 0
    for name in ("demo-grpo", "demo-gspo", "demo-rloo"):
        assert SweepManifest.load(str(tmp_path / "demo" / name)).spec["seeds"] == [0, 1]


def test_a_base_that_cannot_be_scored_is_not_tried_again_by_every_sweep(tmp_path, monkeypatch, capsys):
    """Three algorithms over one base: the first fails to score it, and no other begins. Once it can, all of them do."""
    sweeps = Sweeps(monkeypatch, unscored=["demo-grpo"])
    assert factorial.run(spec_of(tmp_path), None, fresh=False) == 1
    assert sweeps.begun == ["demo-grpo"]
    said = capsys.readouterr().err
    assert "sweep 3 of 3, demo-rloo, is left out: demo-grpo has the same base and could not score it" in said
    assert f"`layersweep resume {tmp_path}/demo` goes on" in said
    sweeps.unscored.clear()
    assert factorial.resume(str(tmp_path / "demo"), None, None) == 0
    assert sweeps.begun[1:] == ["demo-grpo again", "demo-gspo", "demo-rloo"] and sweeps.scored == ["demo-grpo"]


def test_another_base_is_tried_though_the_first_could_not_be_scored(tmp_path, monkeypatch):
    """Two models, each with two algorithms: what the first model cannot, the second may."""
    factors = {"model.seed": [0, 1], "algorithm": ["grpo", "gspo"]}
    names = [one.name for one in sweeps_of(spec_of(tmp_path, factors))]
    sweeps = Sweeps(monkeypatch, unscored=names[:1])
    assert factorial.run(spec_of(tmp_path, factors), None, fresh=False) == 1
    assert len(names) == 4 and sweeps.begun == [names[0], *names[2:]]


def test_everything_is_checked_before_the_first_begins(tmp_path, monkeypatch):
    """A layer that the model lacks in one of them; a folder that holds a sweep already, or is one sweep's."""
    sweeps = Sweeps(monkeypatch)
    with pytest.raises(SpecError, match="demo-far: layers: the model has layers 0 to 5, not 9"):
        factorial.run(spec_of(tmp_path, {"layers": {"near": [1], "far": [9]}}), None, fresh=False)
    assert not sweeps.begun
    SweepManifest.begin(make_plan(sweeps_of(spec_of(tmp_path))[1]))
    with pytest.raises(SpecError, match="demo-gspo holds a sweep already"):
        factorial.run(spec_of(tmp_path), None, fresh=False)
    SweepManifest.begin(make_plan(parse_spec(demo(output=str(tmp_path)))))
    with pytest.raises(SpecError, match="demo holds a sweep without factors"):
        factorial.run(spec_of(tmp_path), None, fresh=False)
    assert not sweeps.begun


def test_fresh_discards_what_each_had(tmp_path, monkeypatch):
    sweeps = Sweeps(monkeypatch)
    factorial.run(spec_of(tmp_path), None, fresh=False)
    factorial.run(spec_of(tmp_path), None, fresh=True)
    assert sweeps.begun == ["demo-grpo", "demo-gspo", "demo-rloo"] * 2
    assert sweeps.scored == ["demo-grpo", "demo-grpo"]


def test_one_driver_for_all(tmp_path, monkeypatch):
    """While one sweep is carried out, even between two, no second driver of the same spec begins or goes on."""
    refused = []

    def carry_out(plan, begin, session, listen):
        begin()
        for again in (
            lambda: factorial.resume(str(tmp_path / "demo"), None, None),
            lambda: factorial.run(spec_of(tmp_path), None, fresh=True),
        ):
            with pytest.raises(SpecError, match="demo: process .* is running this sweep"):
                again()
            refused.append(plan.spec.name)
        scored_base(plan)
        return 0

    monkeypatch.setattr(factorial, "carry_out", carry_out)
    assert factorial.run(spec_of(tmp_path), None, fresh=False) == 0
    assert refused == ["demo-grpo", "demo-grpo", "demo-gspo", "demo-gspo", "demo-rloo", "demo-rloo"]
