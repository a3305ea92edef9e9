import numpy as np
import pandas as pd
import pytest

from layersweep.orchestrator.statistics.layer_profile import Profile, load_profile, profile
from layersweep.orchestrator.statistics.profile_agreement import (
    Correlation,
    align,
    compare,
    compare_all,
    concentration,
    concentrations,
    corrected_spearman,
    matrix,
    overlap,
)
from tests.simulations import agreement
from tests.simulations.profiles import PUBLISHED


def layers_of(values, name="a", noise=np.nan, model_layers=None, layers=None):
    values = np.asarray(values, dtype=float)
    layers = np.arange(len(values)) if layers is None else np.asarray(layers)
    total = model_layers or len(values)
    return Profile(name, layers, layers / (total - 1), values, np.full(len(values), noise), total, True)


def test_published_table_is_read_from_its_four_benchmarks():
    """C of all 28 layers within 0.02 of the published column (rounded to 0.1 points), best five {10, 12, 9, 2, 13}."""
    found = load_profile(PUBLISHED)
    published = pd.read_csv(PUBLISHED).dropna()
    assert found.layers.tolist() == list(range(28)) and found.model_layers == 28
    assert np.abs(found.contribution - published["c_math"]).max() < 0.02
    # layer 0: (63.4 + 81.7 + 23.6 + 31.9) / 4 = 50.15 over 44.15 and 50.775
    assert found.contribution[0] == pytest.approx((50.15 - 44.15) / (50.775 - 44.15))
    assert set(np.argsort(-found.contribution)[:5]) == {10, 12, 9, 2, 13}
    assert np.isnan(found.noise).all()
    assert (load_profile(PUBLISHED, noise=0.13).noise == 0.13).all()


def test_reading_rules():
    table = pd.DataFrame({"layer": [1, 0, None], "score": [0.5, 0.4, 0.3]})
    raw = profile(table, "scores alone")
    assert raw.contribution.tolist() == [0.4, 0.5] and not raw.is_contribution
    named = profile(
        pd.DataFrame({"Layer": [None, None, 0, 1], "selection": ["base", "full", "layer-00", "layer-01"]}).assign(
            Score=[0.2, 0.6, 0.3, 0.7]
        ),
        "by base and full",
    )
    assert named.contribution == pytest.approx([0.25, 1.25]) and named.is_contribution
    ours = pd.DataFrame(
        {
            "selection": ["base", "full", "layer-02", "layer-05", "layer-06"],
            "kind": ["base", "full", "layer", "layer", "layer"],
            "layer": pd.array([None, None, 2, 5, 6], dtype="Int64"),
            "depth": [np.nan, np.nan, 2 / 11, 5 / 11, 6 / 11],
            "contribution": [0, 1, 0.5, 0.75, np.nan],
            "contribution_low": [0, 1, 0.3, 0.5, np.nan],
            "contribution_high": [0, 1, 0.7, 1.0, np.nan],
        }
    )
    found = profile(ours, "ours")
    assert found.layers.tolist() == [2, 5] and found.model_layers == 12
    assert found.noise == pytest.approx([0.4 / 3.92, 0.5 / 3.92], rel=1e-4)
    assert profile(ours.assign(contribution_sd=0.05), "ours").noise.tolist() == [0.05, 0.05]


def test_tables_without_a_profile_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no column `layer`"):
        profile(pd.DataFrame({"score": [1]}), "x")
    with pytest.raises(ValueError, match="neither `contribution` nor `score`"):
        profile(pd.DataFrame({"layer": [0], "c_math": [1.0]}), "x")
    with pytest.raises(ValueError, match="more than one row for layer 3"):
        profile(pd.DataFrame({"layer": [3, 3], "contribution": [1.0, 2.0]}), "x")
    with pytest.raises(ValueError, match="no layer with a contribution"):
        profile(pd.DataFrame({"layer": [3], "contribution": [np.nan]}), "x")
    with pytest.raises(ValueError, match="full scores as much as base"):
        profile(pd.DataFrame({"layer": [None, None, 0], "kind": ["base", "full", "layer"], "score": [1, 1, 2]}), "x")
    with pytest.raises(ValueError, match="neither a .parquet nor a .csv"):
        load_profile(tmp_path / "table.json")


def test_file_names_the_profile(tmp_path):
    folder = tmp_path / "sweep-a"
    folder.mkdir()
    table = pd.DataFrame({"layer": range(5), "contribution": np.linspace(0, 1, 5)})
    table.to_parquet(folder / "contribution.parquet")
    table.to_csv(tmp_path / "theirs.csv", index=False)
    assert load_profile(folder / "contribution.parquet").name == "sweep-a"
    assert load_profile(tmp_path / "theirs.csv").name == "theirs"


def test_observed_spearman_and_overlap_by_hand():
    """Ranks 1..5 against 2,1,4,3,5: squared differences 1+1+1+1 = 4, rho = 1 - 6*4/(5*24) = 0.8; top 2 share one."""
    found = compare(layers_of([1, 2, 3, 4, 5]), layers_of([2, 1, 4, 3, 5], "b"), top=2)
    assert found["spearman"] == pytest.approx(0.8)
    assert (found["overlap"], found["overlap_by_chance"], found["layers"]) == (0.5, 0.4, 5)
    assert found["verdict"] == "noise unknown" and np.isnan(found["rho"])
    assert overlap(np.array([1.0, 2.0]), np.array([2.0, 1.0]), 5) == 1.0


def test_without_noise_the_corrected_rho_is_the_observed():
    found = compare(layers_of([1, 2, 3, 4, 5], noise=1e-9), layers_of([2, 1, 4, 3, 5], "b", noise=1e-9))
    assert [found["rho"], found["rho_low"], found["rho_high"]] == pytest.approx([0.8] * 3)


def test_noise_is_corrected_for_and_not_twice():
    """True correlation .78, seen about .6 at a noise of .13; the median comes back to the truth."""
    seen = agreement.simulate(agreement.normal_pair, 28, 0.8, 0.13, 60)
    true, observed, median = seen[:, :3].mean(axis=0)
    assert observed < true - 0.1
    assert abs(median - true) < 0.06


def test_all_noise_cannot_tell():
    rng = np.random.default_rng(0)
    found = corrected_spearman(*rng.standard_normal((2, 28)), np.ones(28), np.ones(28), rng)
    assert found.verdict == "cannot tell"
    assert Correlation(0.6, 0.2, 0.9).verdict == "agree"
    assert Correlation(-0.6, -0.9, -0.2).verdict == "disagree"
    assert Correlation(0.5, -0.1, 0.8).verdict == "cannot tell"


def test_too_few_or_constant_layers():
    assert compare(layers_of([1, 2, 3], noise=0.1), layers_of([1, 2, 3], "b", noise=0.1))["verdict"] == "cannot tell"
    level = compare(layers_of(np.ones(6), noise=0.1), layers_of(np.arange(6), "b", noise=0.1))
    assert np.isnan(level["spearman"]) and np.isnan(level["rho"]) and level["verdict"] == "cannot tell"
    apart = compare(layers_of([1, 2], model_layers=9), layers_of([1, 2], "b", model_layers=9, layers=[7, 8]))
    assert apart["layers"] == 0 and np.isnan(apart["overlap"])


def test_alignment_by_relative_depth():
    """Depths 0, .5, 1 of a 3-layer model in one of 4, at 0, 1/3, 2/3, 1: the middle is half way between two layers."""
    shallow, deep = layers_of([1, 2, 3], noise=0.1), layers_of([0, 3, 6, 9], "deep", noise=0.2)
    depth, x, y, noise_x, noise_y = align(shallow, deep)
    assert depth.tolist() == [0, 0.5, 1]
    assert x.tolist() == [1, 2, 3] and y == pytest.approx([0, 4.5, 9])
    assert noise_x == pytest.approx([0.1] * 3) and noise_y == pytest.approx([0.2, 0.2 / 2**0.5, 0.2])
    swapped = align(deep, shallow)
    assert swapped[1] == pytest.approx(y) and swapped[2] == pytest.approx(x) and swapped[3] == pytest.approx(noise_y)
    # one depth, different layers scanned: those both have
    some = layers_of([5, 7], "some", model_layers=3, layers=[0, 2])
    assert align(shallow, some)[1].tolist() == [1, 3]
    # out of the other's range: left out
    narrow = layers_of([1, 2, 3, 4], "narrow", model_layers=9, layers=[2, 3, 4, 5])
    assert align(shallow, narrow)[0].tolist() == [0.5]


def test_concentration_by_hand():
    """4, -1 (as 0), 1, 3: the top 2 hold 7/8, the centre is (0*4 + 2/3*1 + 1*3) / 8.

    Gini of the sorted 0, 1, 3, 4: 2 (1*0 + 2*1 + 3*3 + 4*4) / (4 * 8) - 5/4 = .4375.
    """
    found = concentration(layers_of([4, -1, 1, 3]), top=2)
    assert found["top_share"] == pytest.approx(7 / 8)
    assert found["centre_of_mass"] == pytest.approx((2 / 3 + 3) / 8)
    assert found["gini"] == pytest.approx(2 * 27 / 32 - 5 / 4)
    assert concentration(layers_of([1, 1, 1, 1]))["gini"] == pytest.approx(0)
    assert concentration(layers_of([0, 0, 0, 1]))["gini"] == pytest.approx(3 / 4)
    assert np.isnan(concentration(layers_of([0, -1]))["gini"])
    table = concentrations([layers_of([4, -1, 1, 3]), layers_of([1, 1, 1, 1], "b")], top=2)
    assert table["table"].tolist() == ["a", "b"] and table["top_share"].tolist() == [7 / 8, 1 / 2]


def test_matrix_of_many_tables():
    profiles = [layers_of([1, 2, 3, 4, 5]), layers_of([2, 1, 4, 3, 5], "b"), layers_of([5, 4, 3, 2, 1], "c")]
    pairs = compare_all(profiles)
    assert pairs[["a", "b"]].values.tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    square = matrix(pairs, "spearman")
    assert square.loc["b", "a"] == pytest.approx(0.8) and square.loc["a", "c"] == pytest.approx(-1)
    assert np.allclose(square, square.T) and np.diag(square).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="same name"):
        compare_all([profiles[0], profiles[0]])
    with pytest.raises(ValueError, match="two tables"):
        compare_all(profiles[:1])


@pytest.mark.parametrize("rho", [0.8, 0.0])
def test_interval_holds_the_true_rho(rho):
    assert agreement.coverage(agreement.simulate(agreement.smooth_pair, 28, rho, 0.13, 80)) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("pair", [agreement.normal_pair, agreement.smooth_pair, agreement.published_pair])
@pytest.mark.parametrize(
    ("layers", "rho", "noise"), [(28, 0.8, 0.13), (36, 0.3, 0.13), (28, 0.99, 0.05), (28, 0.99, 0.13), (10, 0.8, 0.2)]
)
def test_interval_holds_the_true_rho_in_300_pairs(pair, layers, rho, noise):
    assert agreement.coverage(agreement.simulate(pair, layers, rho, noise, 300)) >= 0.92
