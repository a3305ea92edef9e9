"""The columns of the three files: what is refused, what a file says of itself, and files of an older version."""

from functools import partial

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from layersweep.cli import main
from layersweep.orchestrator.statistics.contribution_table import sweep_table
from layersweep.orchestrator.statistics.suite_table import suite_table
from layersweep.rollout.types import ScoredResponses
from layersweep.workers.actors.collector import Collector
from layersweep.workers.storage.run_store import CheckpointRecord
from layersweep.workers.storage.table_schema import VERSION_KEY, UnknownColumn
from layersweep.workers.storage.tables import CONTRIBUTION, PHASES, SCORES, STEPS, model_layers_from_depth
from layersweep.workers.trackers.config import TrackingConfig
from tests.helpers.tables import run_facts, save_as_version_1

CONSTANTS = {"sweep": "s", "model": "m", "algorithm": "grpo", "task": "t", "learning_rate_policy": "given"}


def collector(folder, *selections, summarise=None):
    """A collector of runs with one seed, 2 steps each, that writes when it is told."""
    summarise = summarise or partial(sweep_table, CONSTANTS | {"model_layers": 6})
    found = Collector(
        str(folder),
        [run_facts(name) for name in selections],
        summarise,
        partial(suite_table, "s"),
        2,
        "s",
        TrackingConfig(),
    )
    found.next_write = float("inf")
    return found


def metrics(**more):
    """A row of steps.parquet as a run sends it."""
    return dict.fromkeys((f"{phase}_seconds" for phase in PHASES), 0.5) | {"reward_mean": 0.25, "tokens": 8.0} | more


def responses(right):
    """What a rollout worker sends: one suite, a prompt per entry of `right`, one response each."""
    count = len(right)
    scored = ScoredResponses(
        prompt=np.array([f"p{i}" for i in range(count)], object),
        sample=np.zeros(count, int),
        score=np.array(right, float),
        response_tokens=np.full(count, 5, np.int32),
        truncated=np.zeros(count, bool),
        format_ok=np.ones(count, bool),
        answer=np.full(count, None),
        category=np.full(count, None),
        losses=np.zeros(count, int),
        unjudged=np.zeros(count, bool),
    )
    named = {"suite": np.full(count, "a", object), "split": np.full(count, "selection", object)}
    return named | {"counts": np.full(count, True)} | vars(scored)


def test_a_metric_without_a_column_is_refused_where_it_arrives(tmp_path):
    """By record_step, by a checkpoint, and in scores; what is there already stays."""
    mine = collector(tmp_path, "layer-01")
    mine.record_step("layer-01", 0, 0, metrics())
    with pytest.raises(UnknownColumn, match=r"steps\.parquet has no column kl_by_head; .*tables\.py"):
        mine.record_step("layer-01", 0, 1, metrics(kl_by_head=0.1))
    with pytest.raises(UnknownColumn, match="kl_by_head"):
        mine.commit("layer-01", 0, 1, {}, [{"step": 0} | metrics(kl_by_head=0.1)], 1.0, 2)
    with pytest.raises(UnknownColumn, match=r"scores\.parquet has no column reasoning"):
        mine.record_scores("layer-01", 0, 2, responses([1, 0]) | {"reasoning": np.array(["18", "3"])})
    with pytest.raises(UnknownColumn, match=r"contribution\.parquet has no column pass_at_4"):
        collector(tmp_path, "base", summarise=partial(sweep_table, CONSTANTS | {"pass_at_4": 1})).table()
    steps, scores = mine._frames()
    assert steps["step"].tolist() == [0] and not len(scores)


def test_rows_get_all_columns_typed_and_null_where_they_lack_one():
    frame = STEPS.frame([{"selection": "full", "seed": 0, "step": 3, "tokens": 448.0, "kl": None}])
    assert list(frame) == [column.name for column in STEPS.columns]
    assert frame["tokens"].tolist() == [448] and str(frame["tokens"].dtype) == "Int64"
    assert frame["kl"].isna().all() and frame["kl"].dtype == np.float64 and frame["lost_episodes"].isna().all()
    with pytest.raises(ValueError, match="column loss: could not convert"):
        STEPS.frame([{"selection": "full", "seed": 0, "step": 0, "loss": "low"}])


def test_a_file_says_its_version_and_what_its_columns_mean(tmp_path):
    with open(tmp_path / "steps.parquet", "wb") as file:
        STEPS.write(STEPS.frame([{"selection": "full", "seed": 0, "step": 0, "loss": 0.5}]), file)
    schema = pq.read_schema(tmp_path / "steps.parquet")
    assert schema.metadata[VERSION_KEY] == b"3"
    assert schema.field("sync_seconds").metadata == {
        b"meaning": b"wall time of bringing the weights to the engine", b"unit": b"s",
    }  # fmt: skip
    assert pd.read_parquet(tmp_path / "steps.parquet")["loss"].tolist() == [0.5]  # pandas alone opens it
    table = pq.read_table(tmp_path / "steps.parquet")
    pq.write_table(table.replace_schema_metadata({VERSION_KEY: b"4"}), tmp_path / "steps.parquet")
    with pytest.raises(ValueError, match="newer layersweep: schema version 4, this one reads up to 3"):
        STEPS.read(str(tmp_path / "steps.parquet"))


def test_zeros_of_version_2_for_what_was_not_measured_are_nulls(tmp_path):
    """It wrote 0 for the KL without a KL term, and for all of a batch without signal."""
    rows = [
        {"selection": "full", "seed": 0, "step": step, "loss": 0.0, "kl": 0.0, "entropy": entropy,
         "logprob_mismatch": entropy, "clip_fraction": 0.0}
        for step, entropy in enumerate((0.5, 0.0))
    ]  # fmt: skip
    for version, kl, entropy in ((b"2", [None, None], [0.5, None]), (b"3", [0.0, 0.0], [0.5, 0.0])):
        with open(tmp_path / "steps.parquet", "wb") as file:
            STEPS.write(STEPS.frame(rows), file)
        table = pq.read_table(tmp_path / "steps.parquet")
        pq.write_table(table.replace_schema_metadata({VERSION_KEY: version}), tmp_path / "steps.parquet")
        found = STEPS.read(str(tmp_path / "steps.parquet")).astype(object)
        found = found.where(found.notna(), None)
        assert found["kl"].tolist() == kl
        assert found["entropy"].tolist() == found["logprob_mismatch"].tolist() == entropy
        assert found["loss"].tolist() == found["clip_fraction"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("schema", [STEPS, SCORES, CONTRIBUTION], ids=lambda schema: schema.name)
def test_every_column_is_described_once_and_may_be_missing_unless_required(tmp_path, schema):
    names = [column.name for column in schema.columns]
    assert len(set(names)) == len(names) and all(column.meaning for column in schema.columns)
    row = {column.name: "x" if column.type == "str" else 1 for column in schema.columns if column.type != "object"}
    for column in schema.columns:
        pd.DataFrame([row]).drop(columns=column.name, errors="ignore").to_parquet(tmp_path / "old.parquet")
        if column.required:
            with pytest.raises(ValueError, match=f"not a {schema.name} table of layersweep: it lacks {column.name}"):
                schema.read(str(tmp_path / "old.parquet"))
        else:
            found = schema.read(str(tmp_path / "old.parquet"))
            assert list(found) == names
            # Version 1 tells the model's layers by layer and depth, here 1 and 1.
            assert (
                found[column.name].tolist() == [2] if column.name == "model_layers" else found[column.name].isna().all()
            )


def test_what_a_rollout_worker_sends_is_all_of_scores():
    assert {*responses([1]), "selection", "seed", "step"} == set(SCORES.types)
    assert {f"{phase}_seconds" for phase in PHASES} <= set(STEPS.types)


def test_the_number_of_layers_behind_a_depth():
    """Layers 2 and 5 of 12: depths 2/11 and 5/11. Layer 0 alone tells nothing."""
    layer = pd.Series([None, 0, 2, 5], dtype="Int64")
    assert model_layers_from_depth(layer, pd.Series([np.nan, 0.0, 2 / 11, 5 / 11])) == 12
    assert model_layers_from_depth(layer[:2], pd.Series([np.nan, 0.0])) is None


def old_sweep(folder):
    """A sweep of base, full and layers 0 and 2 of 6 as version 1 left it: 4 prompts, 2 steps."""
    names = ("base", "full", "layer-00", "layer-02")
    mine = collector(folder, *names)
    right = {"base": [0, 0, 0, 1], "full": [1, 1, 1, 1], "layer-00": [1, 0, 0, 1], "layer-02": [1, 1, 0, 1]}
    for name in names:
        mine.record_scores(name, 0, 0 if name == "base" else 2, responses(right[name]))
        if name != "base":
            rows = [{"step": step} | metrics() for step in range(2)]
            mine.commit(name, 0, 2, {}, rows, 1.0, 2)
        mine.update_run(name, 0, status="completed")
    mine.write()
    save_as_version_1(folder)


def test_a_sweep_of_version_1_opens_in_report_compare_and_resume(tmp_path, capsys):
    """Its tables lack model_layers, losses and gradient_agreement, and its run stores the first two."""
    old_sweep(tmp_path / "one" / "demo")
    old_sweep(tmp_path / "two" / "demo")
    one = tmp_path / "one" / "demo"
    assert "model_layers" not in pd.read_parquet(one / "contribution.parquet")
    assert main(["report", str(one)]) == 0
    assert "2 of 6" in (one / "report.html").read_text()  # layers: the model has 6
    assert main(["compare", str(one), str(tmp_path / "two" / "demo")]) == 0
    capsys.readouterr()
    before = pd.read_parquet(one / "contribution.parquet").set_index("selection")
    again = collector(one, "base", "full", "layer-00", "layer-02")  # as a resumed sweep starts it
    again.write()
    steps, scores, table = (
        schema.read(str(one / f"{schema.name}.parquet")) for schema in (STEPS, SCORES, CONTRIBUTION)
    )
    assert len(steps) == 6 and steps["gradient_agreement"].isna().all() and steps["reward_mean"].eq(0.25).all()
    assert len(scores) == 16 and scores["losses"].isna().all()
    assert table["model_layers"].tolist() == [6] * 4
    assert table.set_index("selection")["contribution"].to_dict() == before["contribution"].to_dict()


def test_a_store_with_a_metric_that_is_none_any_more(tmp_path):
    mine = collector(tmp_path, "full")
    store = mine._store("full", 0)
    record = {"step": 0, "reward_mean": 0.5, "dropped_since": 1.0}
    store.commit(CheckpointRecord(1, {}, [{"selection": "full", "seed": 0} | record], 1.0), 2)
    steps, _ = collector(tmp_path, "full")._frames()
    assert steps["reward_mean"].tolist() == [0.5]


def test_named_rewards_are_columns_of_those_sweeps_that_have_them(tmp_path):
    """Two evaluations, of which one has a reward; in a step; through the file, and through a restarted collector."""
    mine = collector(tmp_path, "layer-01")
    mine.record_scores("layer-01", 0, 0, responses([1, 0]) | {"reward.brief": np.array([0.5, np.nan])})
    mine.record_scores("layer-01", 0, 2, responses([1, 1]))
    mine.commit("layer-01", 0, 1, {}, [{"step": 0} | metrics(**{"reward.brief": 0.25})], 1.0, 2)
    mine.write()
    for again in (mine, collector(tmp_path, "layer-01")):
        steps, scores = again._frames()
        assert scores["reward.brief"].tolist()[:1] == [0.5] and scores["reward.brief"].isna().tolist()[1:] == [True] * 3
        assert steps["reward.brief"].tolist() == [0.25]
    read = SCORES.read(str(tmp_path / "scores.parquet"))
    assert list(read) == [*SCORES.types, "reward.brief"] and read["reward.brief"].dtype == np.float64
    field = pq.read_schema(tmp_path / "scores.parquet").field("reward.brief")
    assert b"reward function" in field.metadata[b"meaning"]
    with pytest.raises(UnknownColumn, match="contribution.parquet has no column reward.brief"):
        CONTRIBUTION.frame([{"reward.brief": 1.0}])
