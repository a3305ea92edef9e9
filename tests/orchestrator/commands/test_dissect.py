"""What runs are taken apart into, and what stacks are made of; whole dissections are in tests/end_to_end."""

import pytest

from layersweep.orchestrator.commands.compose import Stack
from layersweep.orchestrator.commands.dissect import pieces_of
from layersweep.policies.selection import Selection

EVERY = ["rank-1", "rank-4", "largest-0.1", "largest-0.3", "x0.5", "x1.5", "x2", "random"]
PARTS = ["attention", "mlp", "norms"]


@pytest.mark.parametrize(
    ("selection", "labels"),
    [
        (Selection.layer(2), PARTS + EVERY),
        (Selection.part((2,), "mlp"), EVERY),
        (Selection.several((0, 2)), [*PARTS, "only-00", "only-02", "without-00", "without-02", *EVERY]),
        (Selection.full(), [*PARTS, *(f"{how}-{k:02d}" for how in ("only", "without") for k in range(3)), *EVERY]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_pieces(selection, labels):
    pieces = pieces_of(selection, 3)
    assert sorted(piece.variant.name for piece in pieces) == sorted(f"{selection.name}.{label}" for label in labels)
    assert {change.selection for piece in pieces for change in piece.variant.changes} == {selection.name}


def test_the_parts_of_the_full_run_are_those_of_all_layers():
    pieces = {piece.variant.name: piece.variant.changes[0] for piece in pieces_of(Selection.full(), 3)}
    assert pieces["full.mlp"].keep.trains("model.layers.2.mlp.up_proj.weight")
    assert not pieces["full.mlp"].keep.trains("model.embed_tokens.weight")
    assert pieces["full.without-01"].leave_out == pieces["full.only-01"].keep == Selection.layer(1)
    assert pieces["full.x1.5"].strength == 1.5


def test_a_stack_s_name_does_not_depend_on_the_order_of_its_members():
    one, other = (
        Stack(members, 1.0, "given", "selection") for members in (("layer-05", "layer-01"), ("layer-01", "layer-05"))
    )
    assert one.name == other.name == "stack-01-05" and one.variant == other.variant
    assert Stack(("layer-01", "layer-02-mlp"), 0.5, "given", "selection").name == "stack-01-02-mlp-x0.5"
