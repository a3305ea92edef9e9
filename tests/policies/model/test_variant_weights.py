"""Changes of finished runs, taken apart and added up: by hand, and against numpy."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from layersweep.policies.model.variant_weights import changed, low_rank, stack_weights, variant_weights
from layersweep.policies.selection import Selection
from layersweep.policies.variant import RunChange, Variant

Q, NORM, UP = (f"model.layers.1.{name}.weight" for name in ("self_attn.q_proj", "input_layernorm", "mlp.up_proj"))
OTHER = "model.layers.3.mlp.up_proj.weight"
BASE = {
    Q: torch.tensor([[1.0, 2.0], [3.0, 4.0]]), NORM: torch.tensor([1.0, 1.0]),
    UP: torch.tensor([[5.0, 6.0]]), OTHER: torch.tensor([[7.0, 8.0]]),
}  # fmt: skip
RUN = {Q: BASE[Q] + torch.tensor([[0.5, 0.0], [0.0, -2.0]]), NORM: BASE[NORM] + torch.tensor([0.25, 0.0]),
       UP: BASE[UP] + torch.tensor([[1.0, -3.0]])}  # fmt: skip
SECOND = {OTHER: BASE[OTHER] + torch.tensor([[4.0, -4.0]])}
OVERLAYS = {"layer-01": RUN, "layer-03": SECOND}


def change(**how) -> dict[str, list]:
    """What is left of the first run's change, by the last part of the name's module."""
    found = changed(RunChange("layer-01", **how), BASE, RUN)
    return {name.split(".")[-2]: delta.tolist() for name, delta in found.items()}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, {"q_proj": [[0.5, 0], [0, -2]], "input_layernorm": [0.25, 0], "up_proj": [[1, -3]]}),
        ({"keep": Selection.part((1,), "norms")}, {"input_layernorm": [0.25, 0]}),
        ({"keep": Selection.part((2,), "norms")}, {}),
        ({"leave_out": Selection.part((1,), "mlp")}, {"q_proj": [[0.5, 0], [0, -2]], "input_layernorm": [0.25, 0]}),
        # The matrix diag(0.5, -2) of rank 1 is diag(0, -2); a vector and a matrix of rank 1 stay.
        ({"rank": 1}, {"q_proj": [[0, 0], [0, -2]], "input_layernorm": [0.25, 0], "up_proj": [[1, -3]]}),
        # Three of eight entries: -3, -2, 1.
        ({"largest": 0.375}, {"q_proj": [[0, 0], [0, -2]], "input_layernorm": [0, 0], "up_proj": [[1, -3]]}),
    ],
)
def test_a_run_s_change_is_taken_apart(how, expected):
    found = change(**how)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        np.testing.assert_allclose(found[name], delta, atol=1e-6)


def test_a_random_change_has_each_tensor_s_norm_and_nothing_else_of_it():
    random, again = (changed(RunChange("layer-01", random=True), BASE, RUN) for _ in range(2))
    for name, delta in random.items():
        assert float(delta.norm()) == pytest.approx(float((RUN[name] - BASE[name]).norm()), rel=1e-6)
        assert torch.equal(delta, again[name]) and (delta != 0).all()


def test_changes_of_several_runs_are_added_to_the_base():
    """Half of layer 1's MLP, all of layer 3: 5 + 1/2, 6 - 3/2; 7 + 4, 8 - 4. What no run changed is not sent."""
    variant = Variant("stack", (RunChange("layer-01", 0.5, keep=Selection.part((1,), "mlp")), RunChange("layer-03")))
    weights, deltas = variant_weights(variant, BASE, OVERLAYS)
    assert {name: weight.tolist() for name, weight in weights.items()} == {UP: [[5.5, 4.5]], OTHER: [[11, 4]]}
    assert {name: delta.tolist() for name, delta in deltas.items()} == {UP: [[0.5, -1.5]], OTHER: [[4, -4]]}


def test_changes_of_the_same_parameter_are_added():
    twice = Variant("twice", (RunChange("layer-03", 0.5), RunChange("layer-03", 0.75)))
    assert variant_weights(twice, BASE, OVERLAYS)[0][OTHER].tolist() == [[12, 3]]


def test_files_of_runs_are_added_up(tmp_path):
    """A run alone is what its file holds, to the bit; at half strength, beside another, half of its change."""
    for name, overlay in OVERLAYS.items():
        save_file(overlay, tmp_path / name)
    first, second = (str(tmp_path / name) for name in OVERLAYS)
    alone = stack_weights({first: 1.0}, BASE)
    assert alone.keys() == RUN.keys() and all(torch.equal(alone[name], RUN[name]) for name in RUN)
    both = stack_weights({first: 0.5, second: 1.0}, BASE)
    assert both[Q].tolist() == [[1.25, 2.0], [3.0, 3.0]] and both[OTHER].tolist() == [[11, 4]]


def test_weights_have_the_runs_dtype():
    """A bfloat16 run of a float32 base began at the base's values in bfloat16: 1.001 is 1 there."""
    base = {NORM: torch.tensor([1.001, 3.0])}
    overlay = {NORM: torch.tensor([1.0, 3.5], dtype=torch.bfloat16)}
    weights, deltas = variant_weights(Variant("v", (RunChange("run", 2.0),)), base, {"run": overlay})
    assert weights[NORM].dtype is torch.bfloat16 and weights[NORM].tolist() == [1.0, 4.0]
    assert deltas[NORM].tolist() == [0.0, 1.0]


def test_low_rank_is_numpy_s_truncation():
    matrix = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    u, s, vh = np.linalg.svd(matrix)
    expected = sum(s[i] * np.outer(u[:, i], vh[i]) for i in range(2))
    np.testing.assert_allclose(low_rank(torch.from_numpy(matrix), 2).numpy(), expected, atol=1e-5)


def test_draws_of_a_random_change_are_independent():
    """Another number is another direction of the same norms: a cosine of 0 within 4 standard errors."""
    one, other = (changed(RunChange("layer-01", random=True, draw=draw), BASE, RUN) for draw in (0, 1))
    for name, delta in one.items():
        torch.testing.assert_close(other[name].norm(), delta.norm())
        cosine = torch.dot(delta.flatten(), other[name].flatten()) / delta.norm() ** 2
        assert abs(cosine) < 4 / delta.numel() ** 0.5
    same = changed(RunChange("layer-01", random=True), BASE, RUN)
    assert all(torch.equal(same[name], delta) for name, delta in one.items())
