"""Which parameters a selection trains, by the names that Hugging Face models have."""

import pytest

from layersweep.policies.selection import LowRank, Selection

BLOCK = [
    "input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight",
    "self_attn.v_proj.weight", "self_attn.o_proj.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight",
    "post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
]  # fmt: skip
OUTER = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
NAMES = [*OUTER[:1], *(f"model.layers.{k}.{name}" for k in (1, 2, 12) for name in BLOCK), *OUTER[1:]]


def trained(selection: Selection) -> list[str]:
    return [name for name in NAMES if selection.trains(name)]


def in_block(k: int, *numbers: int) -> list[str]:
    return [f"model.layers.{k}.{BLOCK[i]}" for i in numbers]


@pytest.mark.parametrize(
    ("selection", "name", "expected"),
    [
        (Selection.base(), "base", []),
        (Selection.full(), "full", NAMES),
        (Selection.boost((1,), "boost-best-1"), "boost-best-1", NAMES),
        (Selection.layer(2), "layer-02", in_block(2, *range(12))),
        (Selection.several((12, 1)), "layers-01-12", in_block(1, *range(12)) + in_block(12, *range(12))),
        (Selection.part((2,), "attention"), "layer-02-attention", in_block(2, 1, 2, 3, 4, 5)),
        (Selection.part((2,), "norms"), "layer-02-norms", in_block(2, 0, 6, 7, 8)),
        (Selection.part((12, 2), "mlp"), "layers-02-12-mlp", in_block(2, 9, 10, 11) + in_block(12, 9, 10, 11)),
        (Selection.part((1,), "q_proj"), "layer-01-q_proj", in_block(1, 1, 2)),
        (Selection.part((1,), r"mlp\.(gate|up)"), "layer-01-mlp-gate-up", in_block(1, 9, 10)),
        (Selection.part((1,), r"^norm"), "layer-01-norm", []),
        (Selection.part((1,), None, LowRank(8, 8.0)), "layer-01-lora-8", in_block(1, 1, 3, 4, 5, 9, 10, 11)),
        (
            Selection.part((2, 12), "attention", LowRank(4, 16.0)),
            "layers-02-12-attention-lora-4-alpha-16",
            in_block(2, 1, 3, 4, 5) + in_block(12, 1, 3, 4, 5),
        ),
        (Selection.part((1,), "norms", LowRank(8, 8.0)), "layer-01-norms-lora-8", []),
        (Selection.part((), "norm"), "outside-norm", ["model.norm.weight"]),
        (Selection.part((), "embed|head"), "outside-embed-head", [OUTER[0], OUTER[2]]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_selection_trains_what_it_names(selection, name, expected):
    assert selection.name == name
    assert trained(selection) == expected


def test_the_parts_of_a_block_are_the_block():
    parts = [trained(Selection.part((2,), modules)) for modules in ("attention", "mlp", "norms")]
    assert sorted(sum(parts, [])) == sorted(trained(Selection.layer(2)))


def test_names_of_many_layers_stay_short():
    assert Selection.several((0, 1, 2, 5, 7, 8)).name == "layers-00-to-02-05-07-08"


def test_gradients_reach_down_to_the_first_trained_parameter():
    """Of 13 blocks: the first of those that train, all of them for the embedding, none for what is behind them."""
    selections = [
        Selection.full(), Selection.part((), "embed_tokens"), Selection.several((2, 12)),
        Selection.part((12,), "mlp"), Selection.part((), "norm"),
    ]  # fmt: skip
    assert [selection.first_block(13) for selection in selections] == [0, 0, 2, 12, 13]
