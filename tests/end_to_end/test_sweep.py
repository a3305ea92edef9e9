"""Whole sweeps on the real Ray, vLLM and DeepSpeed, through the command line."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

from layersweep.cli import DEMO

pytestmark = pytest.mark.slow


def sweep(folder: Path, expect: int, program=("layersweep", "run"), more=(), **sections) -> Path:
    """Run the demo with some sections changed, in `folder`; returns the sweep's folder."""
    spec = yaml.safe_load(Path(DEMO).read_text()) | {"seeds": [0]}
    for name, change in sections.items():
        old = spec.get(name)
        spec[name] = old | change if isinstance(old, dict) else change
    suite = {"name": "sort", "prompts": 24, "final_prompts": 8, "samples": 2}
    spec |= {"name": "small", "output": str(folder), "evaluation": {"suites": [suite], "greedy": True, "finalists": 1}}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", *program, str(path), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == expect, done.stdout + done.stderr
    assert not re.search("core_worker|Token authentication", done.stderr), done.stderr  # what Ray would warn users of
    return folder / "small"


def base_weights(folder: Path) -> dict[str, np.ndarray]:
    from layersweep.orchestrator.spec.load import load_spec
    from layersweep.workers.startup.tiny_model import cache_folder

    spec = load_spec(folder / "sweep.yaml")
    return load_file(cache_folder(spec.model, spec.task) / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Layers 1 and 4 and full, 3 steps, the full run on two data-parallel ranks at ZeRO 2."""
    return sweep(
        tmp_path_factory.mktemp("sweep"), 0, layers=[1, 4], training={"steps": 3, "warmup_steps": 1},
        deepspeed={"full_zero_stage": 2}, resources={"full_trainer_ranks": 2},
    )  # fmt: skip


@pytest.mark.long
def test_weights_sent_directly_are_the_same(finished, tmp_path):
    """Over Gloo instead of Ray's object store: every score and every log-probability mismatch bit for bit."""
    direct = sweep(
        tmp_path, 0, layers=[1, 4], training={"steps": 3, "warmup_steps": 1}, rollout={"weight_transfer": "direct"},
        deepspeed={"full_zero_stage": 2}, resources={"full_trainer_ranks": 2},
    )  # fmt: skip
    assert_same(direct, finished)


def assert_same(one: Path, other: Path) -> None:
    """Two sweeps, bit for bit: scores, and engine against trainer in every step."""
    for file, columns in (("scores.parquet", ["score"]), ("steps.parquet", ["logprob_mismatch", "pushed_bytes"])):
        key = ["selection", "step"] + (["suite", "split", "prompt", "sample"] if file == "scores.parquet" else [])
        ours, theirs = (pd.read_parquet(folder / file).sort_values(key) for folder in (one, other))
        assert len(ours) and (ours[key + columns].to_numpy() == theirs[key + columns].to_numpy()).all()


@pytest.mark.long
def test_generation_and_training_in_phases_change_nothing_but_the_order(finished, tmp_path):
    """All runs write, the engine is put to sleep, all train, it is woken, three times and once more at the most for
    for a run that came late to a phase; vLLM on CPUs keeps its memory while it sleeps, the rest is as on a GPU."""
    log = tmp_path / "phases.txt"
    asleep = sweep(
        tmp_path, 0, ("tests.helpers.sleeping_sweep",), (str(log),), layers=[1, 4],
        training={"steps": 3, "warmup_steps": 1}, deepspeed={"full_zero_stage": 2},
        resources={"full_trainer_ranks": 2},
    )  # fmt: skip
    assert_same(asleep, finished)
    phases = log.read_text().split()
    assert phases[:2] == ["training", "generation"] and all(a != b for a, b in zip(phases, phases[1:], strict=False))
    assert 6 <= len(phases) <= 12


def test_every_run_completes_and_every_file_opens(finished):
    table = pd.read_parquet(finished / "contribution.parquet")
    assert table["selection"].tolist() == ["base", "full", "layer-01", "layer-04"]
    assert (table["status"] == "completed").all()
    assert table["layer"].tolist()[2:] == [1, 4]
    assert table["depth"].tolist()[2:] == pytest.approx([1 / 5, 4 / 5])
    assert table["prompts"].tolist() == [24] * 4
    # 24 prompts x 2 samples and one greedy answer; finalists (base, full, one layer) 8 prompts x 8 samples and one.
    scores = pd.read_parquet(finished / "scores.parquet")
    assert len(scores) == 4 * 24 * 3 + 3 * 8 * 9
    assert set(scores["suite"]) == {"sort", "sort@greedy"}
    counted = scores[(scores["suite"] == "sort") & (scores["split"] == "selection")]
    mean = counted.groupby("selection")["score"].mean()
    assert table.set_index("selection")["score"].to_dict() == pytest.approx(mean.to_dict())
    assert (finished / "report.png").stat().st_size > 10_000
    assert (finished / "sweep.yaml").is_file()


def test_every_response_is_kept_and_scored_once_more_gives_the_same_tables(finished):
    """To the bit, both splits and the greedy answers; each response is the text that its score was given for."""
    from layersweep.orchestrator.commands.rescore import rescore

    names = ["contribution", "contribution_by_suite", "scores", "steps"]
    before = {name: (finished / f"{name}.parquet").read_bytes() for name in names}
    found = rescore(str(finished))
    assert (found.responses, found.changed, found.left_out) == (4 * 24 * 3 + 3 * 8 * 9, 0, 0)
    assert {name: Path(found.folder, f"{name}.parquet").read_bytes() for name in names} == before
    responses = pd.read_parquet(finished / "responses")
    right = responses["response"] == responses["prompt"].map(lambda digits: "".join(sorted(digits)))
    assert (responses["score"] == (right & ~responses["truncated"])).all() and responses["score"].mean() > 0.01
    assert (responses["question"] == responses["prompt"] + "=").all()


def test_the_kl_to_the_base_is_measured_without_a_kl_term(finished):
    """0 at the first step, where every run still is the base; above it at the last, of a run on two ranks too; and
    null between, where it was not measured."""
    kl = pd.read_parquet(finished / "steps.parquet").pivot(index="selection", columns="step", values="kl")
    assert kl.shape == (3, 3) and (kl[0].abs() < 1e-12).all() and kl[1].isna().all() and (kl[2] > 1e-8).all()


def test_only_the_selection_changed_and_all_of_it(finished):
    """Overlays hold exactly the selection's tensors, each different from the base; 37,056 parameters in a layer."""
    base = base_weights(finished)
    for run, prefix in (
        ("layer-01-seed0", "model.layers.1."),
        ("layer-04-seed0", "model.layers.4."),
        ("full-seed0", ""),
    ):
        overlay = load_file(finished / "overlays" / run / "model.safetensors")
        assert set(overlay) == {name for name in base if name.startswith(prefix)}
        for name, tensor in overlay.items():
            assert tensor.shape == base[name].shape
            assert not np.array_equal(tensor, base[name]), name
    table = pd.read_parquet(finished / "contribution.parquet").set_index("selection")
    assert table["trainable_parameters"].to_dict() == {
        "base": 0, "full": sum(t.size for t in base.values()), "layer-01": 37_056, "layer-04": 37_056,
    }  # fmt: skip


def test_the_update_norm_is_the_distance_from_the_base(finished):
    base = base_weights(finished)
    steps = pd.read_parquet(finished / "steps.parquet")
    for selection in ("layer-01", "full"):
        overlay = load_file(finished / "overlays" / f"{selection}-seed0" / "model.safetensors")
        distance = np.sqrt(sum(((t.astype(np.float64) - base[n]) ** 2).sum() for n, t in overlay.items()))
        last = steps[(steps["selection"] == selection) & (steps["step"] == 2)]
        assert last["update_norm"].item() == pytest.approx(distance, rel=1e-5)


def test_what_a_step_records(finished):
    """Pushed bytes are the selection's; the first batch is shared by all runs; engine and trainer agree on it."""
    steps = pd.read_parquet(finished / "steps.parquet")
    assert len(steps) == 3 * 3
    assert steps.groupby("selection")["pushed_bytes"].unique().map(list).to_dict() == {
        "full": [4 * 223_232], "layer-01": [4 * 37_056], "layer-04": [4 * 37_056],
    }  # fmt: skip
    first = steps[steps["step"] == 0]
    assert first["reward_mean"].nunique() == 1
    assert (steps["logprob_mismatch"] < 1e-5).all()
    assert steps.loc[steps["selection"] == "layer-01", "learning_rate"].tolist() == [1e-3] * 3
    phases = ["rollout", "reward", "update", "sync", "wait"]
    assert (steps[[f"{phase}_seconds" for phase in phases]] >= 0).all().all()


@pytest.mark.long
def test_learning_rates_are_found_by_trial(tmp_path):
    """Of 1e-3 and 1e30 the latter collapses, so every run has 1e-3. Its trial is the first two steps of the full run:
    same prompts, seeds and rate, the same rewards and losses. Trials leave no weights."""
    tuning = {"tune": [1e-3, 1e30], "steps": 2}
    folder = sweep(tmp_path, 0, layers=[2], training={"steps": 3, "warmup_steps": 0, "learning_rate": tuning})
    table = pd.read_parquet(folder / "contribution.parquet").set_index("selection")
    assert table["status"].to_dict() == {
        "base": "completed", "full": "completed", "layer-02": "completed",
        "full@lr-0.001": "completed", "full@lr-1e+30": "failed",
    }  # fmt: skip
    assert table["kind"].tolist() == ["base", "full", "layer", "trial", "trial"]
    assert table.loc[["full", "layer-02", "full@lr-0.001"], "learning_rate"].tolist() == [1e-3] * 3
    assert (table["learning_rate_policy"] == "tuned for full").all()
    assert table.loc["full@lr-0.001", "steps"] == 2 and table.loc["full@lr-0.001", "score"] >= 0
    steps = pd.read_parquet(folder / "steps.parquet").set_index(["selection", "step"])
    for column in ("reward_mean", "loss", "grad_norm", "gradient_agreement"):
        trial, full = (steps.loc[name, column].to_numpy(float)[:2] for name in ("full@lr-0.001", "full"))
        np.testing.assert_allclose(trial, full, rtol=1e-5)
    assert sorted(path.name for path in (folder / "overlays").iterdir()) == ["full-seed0", "layer-02-seed0"]
    assert not list((folder / "checkpoints" / "full@lr-0.001-seed0").glob("step-*/rank-*"))
    assert "tuned for full, by 2 trials" in (folder / "report.html").read_text()


def test_a_search_without_room_for_all_and_the_best_of_it_together(tmp_path):
    """With a budget of 0.6 of 4 steps all 6 layers train to step 1, 3 to step 2 and 2 to step 4: 13 steps. Only two
    runs at a time have trainers, so layers leave them at a rung and go on from their checkpoints. The two that are
    left are scored with four times the 2 samples, then trained together."""
    folder = sweep(
        tmp_path, 0, layers={"search": {"budget": 0.6}}, training={"steps": 4, "warmup_steps": 0},
        resources={"concurrent_runs": 2}, combine=[{"only": "best 2"}],
    )  # fmt: skip
    table = pd.read_parquet(folder / "contribution.parquet").set_index("selection")
    layers = table[table["kind"] == "layer"]
    assert sorted(zip(layers["steps"], layers["status"], strict=True)) == [
        (1, "pruned"), (1, "pruned"), (1, "pruned"), (2, "pruned"), (4, "completed"), (4, "completed"),
    ]  # fmt: skip
    steps = pd.read_parquet(folder / "steps.parquet")
    assert not steps.duplicated(["selection", "step"]).any()
    assert steps["selection"].str.startswith("layer-").sum() == 13
    best = layers[layers["status"] == "completed"]
    scores = pd.read_parquet(folder / "scores.parquet")
    own = scores[(scores["suite"] == "sort") & (scores["split"] == "selection") & (scores["step"] == 4)]
    assert own.groupby("selection").size().to_dict() == {name: 24 * 8 for name in best.index} | {
        "full": 24 * 2, "layers-best-2": 24 * 2,
    }  # fmt: skip
    trained = load_file(folder / "overlays" / "layers-best-2-seed0" / "model.safetensors")
    assert {int(name.split(".")[2]) for name in trained} == set(best["layer"])


def test_a_run_that_collapses_fails_alone(tmp_path):
    """A learning rate of 1e9 and a weight decay of 1 multiply the layer's weights by 1e9 at each optimizer step, and
    the fifth of eight overflows: marked failed with the reason, the full run completes, exit code 1."""
    folder = sweep(
        tmp_path,
        1,
        layers=[2],
        training={
            "steps": 2,
            "warmup_steps": 0,
            "epochs": 8,
            "weight_decay": 1.0,
            "learning_rate": {"layer": 1e9, "full": 1e-5},
        },
    )
    table = pd.read_parquet(folder / "contribution.parquet").set_index("selection")
    assert table["status"].to_dict() == {"base": "completed", "full": "completed", "layer-02": "failed"}
    assert table.loc["layer-02", "reason"].startswith("NonFinite: ")
