"""Seeds that a width or a decision takes, against the formulas by hand and against sweeps with as many seeds."""

import numpy as np
import pytest
from scipy import stats

from layersweep.orchestrator.statistics.contribution import contribution_table
from layersweep.orchestrator.statistics.seeds_needed import SeedsNeeded, seeds_needed, seeds_text
from tests.helpers.scores import BASE, FULL, LAYER, frame, responses, sweep
from tests.helpers.tables import selections_in


def flat(name, scores, **more):
    """Every prompt scores the same: no evaluation noise, so seeds are all there is."""
    return frame(*(responses(name, np.full(20, score), seed=seed, **more) for seed, score in enumerate(scores)))


def needed(scores, **options):
    return seeds_needed(scores, selections_in(scores), split="final", **options)


def test_seeds_alone_by_hand():
    """Two seeds each: layer 0 .6 +- .02, layer 1 .52 +- .02, full 1 +- .02: variances .0008, pooled sigma^2 .0008 with
    3 degrees of freedom, of full with S seeds (2 + S - 1) / (S + 1) of it, the same. With S seeds and t of 3 (S - 1):
    the layers' half-widths are the roots of (g - C)^2 = t^2 .0008 / S (1 + C^2)."""
    scores = frame(
        flat("base", [0.0]), flat("full", [0.98, 1.02]), flat("layer-00", [0.58, 0.62]), flat("layer-01", [0.5, 0.54])
    )
    found = needed(scores)

    def half(seeds, gain=0.6):
        v = stats.t.ppf(0.975, 3 * (seeds - 1)) ** 2 * 0.0008 / seeds
        low, high = sorted(np.roots([1 - v, -2 * gain, gain**2 - v]))
        return (high - low) / 2

    assert found.seeds == 2 and found.half_width == pytest.approx(half(2)) and found.floor == 0.0
    assert (found.best, found.runner_up) == ("layer-00", "layer-01")
    for wanted, count in found.by_half_width.items():
        assert half(count) <= wanted and (count == 2 or half(count - 1) > wanted)
    difference = next(s for s in range(2, 99) if 0.08 > stats.t.ppf(0.975, 3 * (s - 1)) * np.sqrt(2 * 0.0008 / s))
    assert found.to_tell_apart == difference == 3
    text = seeds_text(found)
    assert "2 seeds give every layer's C to ±" in text and "±0.2 these are enough" in text
    assert "To tell layer-00 from layer-01 (at the difference seen) 3 seeds (1 more)." in text


def test_it_is_the_width_that_the_table_has():
    """At the seeds there are, the half-width is half of the widest interval of contribution.parquet."""
    rng = np.random.default_rng(5)
    parts = [responses("base", rng.random(60) < 0.2, seed=0)]
    for name, rate in (("full", 0.8), ("layer-00", 0.6), ("layer-01", 0.4)):
        parts += [responses(name, rng.random(60) < rate + rng.normal(0, 0.05), seed=seed) for seed in range(3)]
    scores = frame(*parts)
    table = contribution_table(scores, selections_in(scores)).set_index("selection")
    widths = (table["contribution_high"] - table["contribution_low"])[["layer-00", "layer-01"]] / 2
    found = needed(scores)
    assert found.half_width == pytest.approx(widths.max(), rel=1e-12) and found.floor < found.half_width


def test_a_floor_that_no_seed_lowers():
    """One seed and a given deviation: 40 prompts leave C of the layer at half (.7337 - .2663) / 2, as test_contribution
    has by hand; ±.05 is out of reach, ±.5 would not be."""
    found = needed(sweep(base=BASE, full=FULL, layer_03=LAYER), seed_sd=0.01)
    assert found.floor == pytest.approx(0.052678 / 0.225375, rel=1e-4)
    assert found.by_half_width == {0.2: None, 0.1: None, 0.05: None} and found.runner_up is None
    text = seeds_text(found)
    assert "±0.05 more than 200 seeds" in text and "Evaluation alone leaves ±0.23" in text


@pytest.mark.parametrize(
    ("scores", "options", "words"),
    [
        (sweep(base=BASE, full=FULL, layer_03=LAYER), {}, "one seed says nothing of how runs differ"),
        (sweep(base=BASE, full=FULL), {}, "base, full and a layer must be scored first"),
        (sweep(base=FULL, full=BASE, layer_03=LAYER), {"seed_sd": 0.1}, "the full run gained nothing"),
        (sweep(base=BASE, full=FULL).iloc[:0], {}, "must be scored first"),
    ],
    ids=["one seed", "no layer", "no gain", "nothing"],
)
def test_where_nothing_can_be_told(scores, options, words):
    assert words in needed(scores, **options) and seeds_text(needed(scores, **options)) == needed(scores, **options)


def test_projected_seeds_bring_the_width():
    """Of 16 simulated sweeps with 3 seeds: with as many seeds as were asked for, the widest interval of C is at most
    1.25 times what was wanted in most (sigma was itself an estimate)."""
    rng = np.random.default_rng(11)

    def trained(seeds):
        parts = [responses("base", np.full(200, 0.2))]
        for name, rate in (("full", 0.7), ("layer-00", 0.55), ("layer-01", 0.45), ("layer-02", 0.4)):
            for seed in range(seeds):
                shifted = rate + rng.normal(0, 0.04)
                parts.append(responses(name, np.clip(shifted + rng.normal(0, 0.2, 200), 0, 1), seed=seed))
        return frame(*parts)

    ratios = []
    for _ in range(16):
        found = needed(trained(3))
        assert isinstance(found, SeedsNeeded)
        if (count := found.by_half_width[0.1]) and count > 3:
            scores = trained(count)
            table = contribution_table(scores, selections_in(scores))
            layers = table[table["kind"] == "layer"]
            ratios.append(float((layers["contribution_high"] - layers["contribution_low"]).max()) / 2 / 0.1)
    assert len(ratios) >= 6 and np.mean(np.array(ratios) <= 1.25) >= 0.7, ratios
    assert 0.6 <= np.median(ratios) <= 1.15
