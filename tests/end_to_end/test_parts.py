"""A whole sweep over parts of layers, taken apart and added up, through the command line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from tests.end_to_end.test_sweep import base_weights, sweep

pytestmark = pytest.mark.slow

SWEEP = [
    {"layers": [1], "modules": "mlp"}, {"layers": [4], "modules": "attention"}, {"layers": [[0, 3]]},
    {"layers": [2], "modules": "k_proj|up_proj"}, {"modules": "embed_tokens"},
    {"layers": [5], "modules": "mlp", "lora": {"rank": 4, "alpha": 64}},
]  # fmt: skip
BLOCK = 12_288 + 24_576 + 192
# The embedding has a row for each digit, `=` and two special tokens.
TRAINED = {"layer-01-mlp": 24_576, "layer-04-attention": 12_288, "layers-00-03": 2 * BLOCK,
           "layer-02-k_proj-up_proj": 32 * 64 + 128 * 64, "outside-embed_tokens": 13 * 64}  # fmt: skip
LORA = "layer-05-mlp-lora-4-alpha-64"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return sweep(
        tmp_path_factory.mktemp("parts"), 0, layers=None, sweep=SWEEP, training={"steps": 3, "warmup_steps": 1}
    )


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", "layersweep", *command], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_part_trains_and_travels_alone(finished):
    table = pd.read_parquet(finished / "contribution.parquet").set_index("selection")
    assert table.loc[[*TRAINED, LORA], "trainable_parameters"].to_dict() == TRAINED | {LORA: 3 * 4 * (64 + 128)}
    assert table.loc[LORA, ["kind", "layer", "modules", "lora_rank", "lora_alpha"]].tolist() == [
        "part",
        5,
        "mlp",
        4,
        64,
    ]
    assert table.loc["layer-01-mlp", ["kind", "layer", "modules"]].tolist() == ["part", 1, "mlp"]
    assert table.loc["layers-00-03", "kind"] == "layers" and list(table.loc["layers-00-03", "layers"]) == [0, 3]
    assert table["score"].notna().all() and (table["status"] == "completed").all()
    served = TRAINED | {LORA: 24_576}  # the matrices, adapters merged
    steps = pd.read_parquet(finished / "steps.parquet")
    assert steps.groupby("selection")["pushed_bytes"].unique().map(set).drop("full").to_dict() == {
        name: {4 * count} for name, count in served.items()
    }
    base = base_weights(finished)
    for name, count in served.items():
        overlay = load_file(finished / "overlays" / f"{name}-seed0" / "model.safetensors")
        assert sum(weight.size for weight in overlay.values()) == count
        assert all((weight != base[name]).any() for name, weight in overlay.items())


def test_adapters_are_exported_merged(finished, tmp_path):
    """The base, and three matrices that differ from it by a matrix of rank 4."""
    run("export", str(finished), LORA, "-o", str(tmp_path / "merged"))
    base, merged = base_weights(finished), load_file(tmp_path / "merged" / "model.safetensors")
    changed = {name: merged[name] - weight for name, weight in base.items() if (merged[name] != weight).any()}
    assert sorted(changed) == [f"model.layers.5.mlp.{name}_proj.weight" for name in ("down", "gate", "up")]
    for change in changed.values():
        values = np.linalg.svd(change.astype(np.float64), compute_uv=False)
        assert values[3] > 1e-5 and values[4] < 1e-3 * values[3]


def test_a_variant_at_full_strength_is_its_run(finished):
    """Scored from the base's weights and the run's change, with the run's prompts and seeds: response by response."""
    printed = run("compose", str(finished), "layer-01-mlp", "layer-01-mlp+layer-04-attention", "--greedy", "2")
    assert "stack-01-mlp-04-attention" in printed
    scores = pd.read_parquet(finished / "variants" / "scores.parquet")
    scores = scores[(scores["split"] == "selection") & (scores["suite"] == "sort")]
    own, stack = (scores[scores["selection"] == name]["score"] for name in ("layer-01-mlp", "stack-01-mlp"))
    assert len(own) == 48
    assert np.array_equal(own, stack)
    rows = pd.read_parquet(finished / "composition.parquet")
    assert set(rows.loc[rows["rule"] == "greedy", "split"]) == {"final"}
    assert set(rows.loc[rows["rule"] == "given", "size"]) == {1, 2}


@pytest.mark.long
def test_dissection_goes_on_where_it_was(finished):
    """Pieces of one run, then the table of the same without scoring anything again."""
    first = run("dissect", str(finished), "layers-00-03")
    path = finished / "dissection.parquet"
    rows = pd.read_parquet(path).set_index("variant")
    assert rows.loc["layers-00-03", "kept"] == 1.0 or "gained nothing" in rows.loc["layers-00-03", "kept_reason"]
    assert {"layers-00-03.only-03", "layers-00-03.without-00", "layers-00-03.random"} <= set(rows.index)
    only, without = rows.loc["layers-00-03.only-03"], rows.loc["layers-00-03.without-00"]
    assert only["score"] == without["score"] and only["change_norm"] == without["change_norm"]  # the same weights
    scored = {file: file.stat().st_mtime_ns for file in Path(finished, "variants").rglob("scores/*.parquet")}
    assert run("dissect", str(finished), "layers-00-03") == first
    assert {file: file.stat().st_mtime_ns for file in Path(finished, "variants").rglob("scores/*.parquet")} == scored
    report = (finished / "report.html").read_text()
    assert "What the gain is made of" in report


@pytest.mark.long
def test_a_probe_sees_the_batch_that_the_runs_began_with(finished):
    """The gradients of the prompts' halves agree as much as those of the runs' own first updates. The sweep's own
    selections are measured and screened too, whatever they are; a second screening trains and scores nothing."""
    command = ("probe", str(finished / "sweep.yaml"), "--screen", "2", "--screen-prompts", "16")
    printed = run(*command)
    rows = pd.read_parquet(finished / "probe.parquet").set_index("selection")
    layers, others = rows.iloc[:24], rows.iloc[24:]
    assert list(others.index) == ["layers-00-03", "layer-02-k_proj-up_proj", "outside-embed_tokens", LORA]
    steps = pd.read_parquet(finished / "steps.parquet").set_index(["selection", "step"])
    for name in TRAINED:
        assert rows.loc[name, "gradient_agreement"] == pytest.approx(
            steps.loc[(name, 0), "gradient_agreement"], abs=1e-4
        )
    assert (layers["skip_loss"].dropna() != 0).all()
    assert (layers["parameters"] == [37_056, 12_288, 24_576, 192] * 6).all()
    assert others["parameters"].tolist() == [TRAINED[name] for name in others.index[:-1]] + [3 * 4 * (64 + 128)]
    screened = rows[rows["screened_gain"].notna()]
    assert set(screened.index) == {*TRAINED, LORA}
    assert (screened["screened_steps"] == 2).all() and (screened["screened_prompts"] == 16).all()
    assert (screened["screened_gain_low"] <= screened["screened_gain"]).all()
    kept = {file: file.stat().st_mtime_ns for file in Path(finished, "screening").rglob("scores/*.parquet")}
    assert len(kept) == 1 + len(screened) and run(*command) == printed
    assert {file: file.stat().st_mtime_ns for file in Path(finished, "screening").rglob("scores/*.parquet")} == kept
