"""Whole sweeps with controls, and several sweeps of one spec, on the real Ray, vLLM and DeepSpeed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

from tests.end_to_end.test_sweep import base_weights, sweep

pytestmark = [pytest.mark.slow, pytest.mark.long]

CONTROLS = [
    {"type": "random_reward", "of": 1},
    {"type": "constant_reward", "of": [1, "full"]},
    {"type": "random_direction", "of": 4},
    {"type": "supervised", "of": 1},
    {"type": "learning_rate", "of": [4, "full"], "factors": [0.1]},
]
NAMES = {
    *("layer-01@random-reward", "layer-01@constant-reward", "full@constant-reward", "layer-04@random-direction"),
    *("layer-01@supervised", "layer-04@rate-x0.1", "full@rate-x0.1"),
}
TRAINING = {"steps": 3, "warmup_steps": 0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("controls"), 0, layers=[1, 4], training=TRAINING, controls=CONTROLS)


def overlay(folder: Path, run: str) -> dict[str, np.ndarray]:
    return load_file(folder / "overlays" / run / "model.safetensors")


def test_every_control_has_its_row_and_its_weights(finished):
    table = pd.read_parquet(finished / "contribution.parquet").set_index("selection")
    controls = table[table["kind"] == "control"]
    assert set(controls.index) == NAMES and (table["status"] == "completed").all() and table["score"].notna().all()
    assert controls["rank"].isna().all() and set(table["rank"].dropna()) == {1, 2}
    assert table.loc["full@rate-x0.1", "learning_rate"] == pytest.approx(0.1 * table.loc["full", "learning_rate"])
    assert table.loc["layer-04@rate-x0.1", "update_norm"] < 0.3 * table.loc["layer-04", "update_norm"]
    assert table.loc["full@constant-reward", "trainable_parameters"] == table.loc["full", "trainable_parameters"]
    # Final scores: of full, of the best layer, and of all controls of these.
    final = set(table.index[table["final_score"].notna()])
    best = table["rank"].eq(1).idxmax()
    assert final == {"base", "full", best, *controls.index[controls["control_of"].isin(["full", best])]}
    base = base_weights(finished)
    for name in NAMES:
        changed = any((weight != base[key]).any() for key, weight in overlay(finished, f"{name}-seed0").items())
        assert changed is ("constant" not in name)


def test_a_constant_reward_leaves_the_base(finished):
    """GRPO has no signal: every response is the base's, so C is 0 and its interval has no length."""
    scores = pd.read_parquet(finished / "scores.parquet")
    scores = scores[(scores["split"] == "selection") & (scores["suite"] == "sort")]
    by_run = scores.groupby("selection")["score"].agg(list)
    assert by_run["layer-01@constant-reward"] == by_run["base"] == by_run["full@constant-reward"] != by_run["full"]
    steps = pd.read_parquet(finished / "steps.parquet").set_index("selection")
    assert (steps.loc["full@constant-reward", "optimizer_steps"] == 0).all()


def test_a_random_direction_is_as_long_as_its_run(finished):
    base = base_weights(finished)
    run, control = overlay(finished, "layer-04-seed0"), overlay(finished, "layer-04@random-direction-seed0")
    assert run.keys() == control.keys()
    for name in run:
        own, random = (weights[name] - base[name] for weights in (run, control))
        assert np.linalg.norm(random) == pytest.approx(np.linalg.norm(own), rel=1e-4)
        assert abs((own * random).sum()) < 5 / own.size**0.5 * np.linalg.norm(own) ** 2
    table = pd.read_parquet(finished / "contribution.parquet").set_index("selection")
    norms = table.loc[["layer-04", "layer-04@random-direction"], "update_norm"]
    assert norms.iloc[1] == pytest.approx(norms.iloc[0], rel=1e-4)


def test_all_runs_of_a_seed_share_the_first_batch(finished):
    """The learning curve is one of the task's reward, whatever was trained on; supervised batches are the base's."""
    steps = pd.read_parquet(finished / "steps.parquet")
    first = steps[steps["step"] == 0].set_index("selection")
    assert first["reward_mean"].nunique() == 1 and first["tokens"].nunique() == 1
    supervised = steps[steps["selection"] == "layer-01@supervised"].set_index("step")
    assert supervised["staleness"].to_list() == [0, 1, 2]
    assert supervised["rollout_kl"].iloc[0] < 1e-9 < 1e-6 < supervised["rollout_kl"].iloc[2]
    others = steps[~steps["selection"].eq("layer-01@supervised")]
    assert (others["staleness"] == 0).all() and others["rollout_kl"].max() < 1e-9
    constant = steps[steps["selection"] == "full@constant-reward"].set_index("step")
    # Batches 1 and 2 of a run that stayed the base are the base's too: the same rewards and lengths.
    assert constant["reward_mean"].to_list() == supervised["reward_mean"].to_list()
    assert constant["tokens"].to_list() == supervised["tokens"].to_list()
    # Cross-entropy of right responses falls; it is the base's own at first.
    assert supervised["loss"].iloc[2] < supervised["loss"].iloc[0] and supervised["loss"].iloc[0] > 0


def test_resume_adds_controls(finished, tmp_path):
    """One more: nothing of what was there changes, and every other row of the table stays as it was."""
    before = pd.read_parquet(finished / "contribution.parquet").set_index("selection")
    kept = {path: path.stat().st_mtime_ns for path in finished.rglob("overlays/*/model.safetensors")}
    spec = yaml.safe_load((finished / "sweep.yaml").read_text())
    spec["controls"].append({"type": "supervised", "of": ["layer-04"]})
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "layersweep", "resume", str(finished), str(tmp_path / "more.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    after = pd.read_parquet(finished / "contribution.parquet").set_index("selection")
    assert set(after.index) - set(before.index) == {"layer-04@supervised"}
    columns = ["score", "score_low", "contribution", "contribution_low", "rank", "steps", "update_norm"]
    pd.testing.assert_frame_equal(after.loc[before.index, columns], before[columns])
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_two_algorithms_share_the_base(tmp_path):
    """GRPO and GSPO of one spec: the base is scored once, each run's own sweep is one like any other, the first batch
    is generated once, and the second gives the scores that it gives alone, by an engine that served the first."""
    settings = {"layers": [1, 4], "training": TRAINING, "seeds": [0]}
    folder = sweep(tmp_path, 0, factors={"algorithm": [{"type": "grpo"}, {"type": "gspo"}]}, **settings)
    sweeps = [folder / "small-grpo", folder / "small-gspo"]
    tables = [pd.read_parquet(one / "contribution.parquet").set_index("selection") for one in sweeps]
    assert [table["algorithm"].unique().tolist() for table in tables] == [["grpo"], ["gspo"]]
    assert all((table["status"] == "completed").all() for table in tables)
    assert tables[0].loc["base", "score"] == tables[1].loc["base", "score"]
    stores = [sorted((one / "checkpoints" / "base-seed0" / "scores").glob("*.parquet")) for one in sweeps]
    assert [path.name for path in stores[0]] == [path.name for path in stores[1]] and len(stores[0]) >= 2
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*stores, strict=True))
    firsts = [pd.read_parquet(one / "steps.parquet").query("step == 0") for one in sweeps]
    assert firsts[0]["reward_mean"].unique() == firsts[1]["reward_mean"].unique()
    assert len(list((folder / "first_rollouts").iterdir())) == 1
    assert (firsts[0]["generate_cpu_seconds"] > 0).all() and (firsts[1]["generate_cpu_seconds"] == 0).all()
    (tmp_path / "alone").mkdir()
    alone = sweep(tmp_path / "alone", 0, more=["algorithm=gspo"], **settings)
    key = ["selection", "step", "split", "suite", "prompt", "sample"]
    scores = [
        pd.read_parquet(one / "scores.parquet").set_index(key)["score"].sort_index() for one in (sweeps[1], alone)
    ]
    pd.testing.assert_series_equal(*scores, check_exact=True)
