"""Shares of the variance of profiles: which are asked for, their coverage, and models of different depth."""

from dataclasses import replace

import numpy as np
import pytest

from layersweep.orchestrator.commands.compare import show_variance
from layersweep.orchestrator.statistics.layer_profile import Profile, profile
from layersweep.orchestrator.statistics.profile_variance import align_all, components, shares_text, variance_shares
from tests.simulations.profiles import published


def made(values, noise=0.05, name="", layers=None, **origin) -> Profile:
    values = np.asarray(values, float)
    count = layers or len(values)
    at = np.linspace(0, count - 1, len(values)).round().astype(int)
    return Profile(
        name, at, at / (count - 1), values, np.full(len(values), noise), count, True, origin=origin
    )  # fmt: skip


def share(found, component):
    return found.set_index("component").loc[component]


def test_components_by_what_profiles_have_in_common():
    """Two algorithms on two tasks: the layer, the layer under each, and the rest. Where every sweep has an algorithm of
    its own, the rest is the algorithm's; a factor that says the same as another is not asked for twice."""
    x = np.arange(6.0)
    crossed = [made(x, algorithm=a, task=t, model="m") for a in ("grpo", "gspo") for t in ("sort", "count")]
    found = components(crossed)
    assert list(found) == ["layer", "layer x algorithm", "layer x task", "layer x sweep"]
    assert found["layer x algorithm"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert found["layer x task"].tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert list(components([made(x, algorithm=a, task="t") for a in "abc"])) == ["layer", "layer x algorithm"]
    assert list(components([made(x, algorithm=a, task=a) for a in "ab"])) == ["layer", "layer x algorithm and task"]
    assert list(components([made(x, algorithm=a, task=a) for a in "aab"])) == [
        "layer", "layer x algorithm", "layer x sweep"
    ]  # fmt: skip
    assert list(components([made(x), made(x)])) == ["layer", "layer x sweep"]


def test_clear_cases():
    """The same profile three times, but for noise; three that have nothing in common; one task's against another's."""
    rng = np.random.default_rng(0)
    layer, other = published(), rng.permutation(published())
    noisy = [
        made(layer + rng.normal(0, 0.05, 28) + level, algorithm=a) for a, level in zip("abc", (0, 1, -2), strict=True)
    ]
    found = share(variance_shares(noisy), "layer")
    assert found["share"] > 0.9 and found["high"] > 0.98
    apart = [made(rng.permutation(layer), algorithm=a) for a in "abc"]
    assert share(variance_shares(apart), "layer")["share"] < 0.35
    by_task = [
        made(base + rng.normal(0, 0.05, 28), task=task, algorithm=algorithm)
        for task, base in (("sort", layer), ("count", other)) for algorithm in ("grpo", "gspo")
    ]  # fmt: skip
    found = variance_shares(by_task)
    assert share(found, "layer x task")["share"] > 0.5 > share(found, "layer x algorithm")["high"]
    assert found["share"].sum() == pytest.approx(1, abs=0.15)


def test_noise_is_in_no_share():
    """One profile seen three times with a noise as large as itself: told of the noise, the layer's share is high; told
    that there is none, the noise counts as the sweeps' own."""
    rng = np.random.default_rng(1)
    layer = rng.normal(0, 0.3, 28)
    seen = [layer + rng.normal(0, 0.3, 28) for _ in range(3)]
    known, unknown = (
        share(
            variance_shares([made(values, noise, algorithm=a) for a, values in zip("abc", seen, strict=True)]), "layer"
        )
        for noise in (0.3, 0.001)
    )
    assert known["share"] > 0.75 > 0.65 > unknown["share"] and known["low"] > 0.3


def test_coverage():
    """Shares drawn from the prior, profiles from the shares: 95 % intervals hold the truth in 89 to 100 % of 150."""
    rng = np.random.default_rng(2)
    held = []
    for _ in range(150):
        true = rng.dirichlet([1, 1, 1])
        layer, rest = rng.normal(0, 0.3 * true[0] ** 0.5, 28), 0.3 * true[2] ** 0.5
        by_task = {task: rng.normal(0, 0.3 * true[1] ** 0.5, 28) for task in "st"}
        profiles = [
            made(layer + by_task[task] + rng.normal(0, rest, 28) + rng.normal(0, 0.1, 28), 0.1, task=task)
            for task in "sstt"
        ]
        found = variance_shares(profiles)
        held += [low <= value <= high for value, low, high in zip(true, found["low"], found["high"], strict=True)]
    assert 0.89 <= np.mean(held) <= 1.0


def test_models_of_different_depth_meet_at_relative_depth():
    """A curve over 28 layers and the same over 12: values at 12 relative depths agree, and so does the layer."""
    depth = np.linspace(0, 1, 28)
    deep, flat = made(np.sin(4 * depth), layers=28, model="a"), made(np.sin(4 * np.linspace(0, 1, 12)), model="b")
    values, noise = align_all([deep, flat])
    assert values.shape == noise.shape == (2, 12)
    np.testing.assert_allclose(values[0], values[1], atol=0.01)
    found = variance_shares([deep, flat])
    assert share(found, "layer")["share"] > 0.85 and list(found["component"]) == ["layer", "layer x model"]
    third = made([0.1, 0.2, 0.4], layers=28)  # too few layers in common
    assert not len(variance_shares([deep, flat, third]))


def test_what_cannot_be_told():
    x = np.arange(6.0)
    assert not len(variance_shares([made(x, np.nan), made(x)]))
    assert not len(variance_shares([made(np.zeros(6)), made(np.zeros(6))]))
    assert not len(variance_shares([made(x), replace(made(x), is_contribution=False)]))
    assert shares_text(variance_shares([made(x, np.nan), made(x)]), 1) == ""


def test_a_table_says_what_its_sweep_was_of(capsys):
    import pandas as pd

    rows = pd.DataFrame(
        {"selection": ["full", *(f"layer-{k:02d}" for k in range(5))], "kind": ["full", *["layer"] * 5],
         "layer": [None, *range(5)], "contribution": [1.0, 0.1, 0.5, 0.3, 0.2, 0.6], "contribution_sd": 0.1,
         "algorithm": "grpo", "task": "sort", "model": "tiny", "seeds": [3, 2, 2, 3, 2, 2], "model_layers": 5}
    )  # fmt: skip
    one = profile(rows, "one")
    assert one.origin == {"algorithm": "grpo", "task": "sort", "model": "tiny"} and one.seeds == 2
    other = profile(rows.assign(algorithm="gspo", seeds=1), "other")
    found = variance_shares([one, other])
    show_variance(found, [one, other])
    printed = capsys.readouterr().out
    assert "layer x algorithm" in printed and "With one training run each" in printed
    assert "With one" not in shares_text(found, 2)
