"""The selections of a spec against a model's shape; counts by hand."""

import pytest

from layersweep.cli import DEMO
from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.planning.selections import count_trained, swept_selections
from layersweep.orchestrator.spec.load import load_spec
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.selection import Selection

# The demo's: q and o 64 * 64, k and v 32 * 64; gate, up and down 64 * 128; norms 64, 64, 32, 32; 15 characters.
SHAPE = Architecture(
    name="Qwen3ForCausalLM", layers=6, hidden=64, intermediate=128, heads=2, kv_heads=1, head_dim=32, vocabulary=15,
    tied=True, qkv_bias=False, qk_norm=True, max_positions=1024,
)  # fmt: skip


def names(sweep: list, **fields) -> list[str]:
    return [s.name for s in swept_selections(load_spec(DEMO, {"sweep": sweep, **fields}), SHAPE)]


def test_a_list_of_what_to_sweep():
    assert names([{"layers": "all", "modules": "mlp"}, {"layers": [[3, 5]]}, {"layers": "0:2", "modules": "q_proj"},
                  {"modules": "norm"}], layers=None) == [
        "full", *(f"layer-0{k}-mlp" for k in range(6)), "layers-03-05", "layer-00-q_proj", "layer-01-q_proj",
        "outside-norm",
    ]  # fmt: skip
    assert names([{"layers": "blocks:4"}], layers=None) == ["full", "layers-00-to-03", "layers-04-05"]
    assert names([{"layers": [0, [1, 2]], "modules": "attention"}], layers=[1], include_full=False) == [
        "layer-01", "layer-00-attention", "layers-01-02-attention",
    ]  # fmt: skip
    assert names([{"layers": "middle:2", "lora": {"rank": 8}}, {"layers": [2], "lora": {"rank": 8, "alpha": 32}},
                  {"layers": [[2, 3]], "modules": "mlp", "lora": {"rank": 4}}, {"layers": [2]}], layers=None) == [
        "full", "layer-02-lora-8", "layer-03-lora-8", "layer-02-lora-8-alpha-32", "layers-02-03-mlp-lora-4", "layer-02",
    ]  # fmt: skip


def test_layers_that_are_left_out():
    assert names([{"layers": {"all_but": [3]}}, {"layers": {"all_but": [0, 5]}, "modules": "mlp"}], layers=None) == [
        "full", "layers-00-to-02-04-05", "layers-01-to-04-mlp",
    ]  # fmt: skip
    assert names([{"layers": {"all_but": [0, 1, 2, 3, 4]}}], layers=None) == ["full", "layer-05"]


def test_random_sets():
    """As many as wanted, of the size, no two the same; more of them begin with the same ones; of 6 layers there are 15
    pairs, and asked for 15 all of them come."""
    drawn = [names([{"layers": {"random": {"size": 3, "sets": n}}}], layers=None)[1:] for n in (4, 9)]
    assert drawn[1][:4] == drawn[0] and len(set(drawn[1])) == 9
    selections = swept_selections(
        load_spec(DEMO, {"layers": None, "sweep": [{"layers": {"random": {"size": 2, "sets": 15, "seed": 5}}}]}), SHAPE
    )
    pairs = [selection.layers for selection in selections[1:]]
    assert sorted(pairs) == [(i, j) for i in range(6) for j in range(i + 1, 6)]
    assert all(selection.kind == "layers" for selection in selections[1:])
    one, other = (names([{"layers": {"random": {"size": 3, "sets": 9, "seed": s}}}], layers=None) for s in (0, 1))
    assert one[1:] == drawn[1] != other[1:]


def test_all_layers_are_the_short_form():
    short, long = (load_spec({**load_spec(DEMO).model_dump(), **f}) for f in (
        {"layers": "all"}, {"layers": None, "sweep": [{"layers": "all"}]},
    ))  # fmt: skip
    assert swept_selections(short, SHAPE) == swept_selections(long, SHAPE)
    data = {key: value for key, value in load_spec(DEMO).model_dump().items() if key != "layers"}
    assert load_spec({**data, "sweep": [{"layers": "all"}]}) == long


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        (Selection.part((3,), "attention"), 2 * 64 * 64 + 2 * 32 * 64),
        (Selection.part((3, 5), "mlp"), 2 * 3 * 64 * 128),
        (Selection.part((3,), "norms"), 192),
        (Selection.layer(3), 12_288 + 24_576 + 192),
        (Selection.part((), "norm"), 64),
        (Selection.full(), 6 * 37_056 + 15 * 64 + 64),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_trained_parameters_are_counted(selection, count):
    assert count_trained(selection, SHAPE) == count


def test_adapters_train_few_parameters_and_travel_merged():
    """Rank 8: 8 * (out + in) of q and o 64 x 64, k and v 32 x 64, gate and up 128 x 64, down 64 x 128. Pushed are the
    matrices in float32, without the norms; a trainer has these too, and 16 bytes for each parameter that trains."""
    spec = load_spec(DEMO, {"layers": None, "sweep": [{"layers": [3], "lora": {"rank": 8}}], "include_full": False})
    (selection,) = swept_selections(spec, SHAPE)
    plan = Plan(spec, SHAPE, (Run(selection, 0),))
    trained = 8 * (2 * 128 + 2 * 96 + 3 * 192)
    assert plan.trainable_parameters(selection) == trained
    assert plan.push_bytes(selection) == 4 * (12_288 + 24_576)
    assert plan.trainer_bytes(selection) == 16 * trained + 4 * (12_288 + 24_576)


@pytest.mark.parametrize(
    ("sweep", "problem"),
    [
        ([{"layers": "all", "modules": "mpl"}], r"sweep\[0\].modules: 'mpl' matches no parameter; .*mlp.up_proj"),
        ([{"layers": [2], "modules": "bias"}], r"sweep\[0\].modules: 'bias' matches no parameter"),
        ([{"modules": "lm_head"}], r"'lm_head' matches no parameter; there are model.embed_tokens.weight, model.norm"),
        ([{"layers": [2]}, {"layers": "all"}], r"sweep\[1\]: layer-02 trains the same parameters as layer-02 of sweep"),
        ([{"layers": [2], "modules": "mlp"}, {"layers": [2], "modules": "(gate|up|down)_proj"}],
         r"sweep\[1\]: layer-02-gate-up-down-_proj trains the same parameters as layer-02-mlp of sweep\[0\]"),
        ([{"layers": [2], "modules": "^self_attn.q"}, {"layers": [2], "modules": "self_attn|q"}],
         "would have the same name"),
        ([{"layers": [2], "lora": {"rank": 8}}, {"layers": "all", "modules": "proj", "lora": {"rank": 8, "alpha": 8}}],
         r"sweep\[1\]: layer-02-proj-lora-8 trains the same parameters as layer-02-lora-8 of sweep\[0\]"),
        ([{"layers": [2], "modules": "norms", "lora": {"rank": 8}}], r"sweep\[0\].modules: 'norms' matches no matrix"),
        ([{"layers": [2], "lora": {"rank": 33}}], r"rank: 33 is more than model.layers.2.self_attn.k_proj.weight has, "
         "which is 32 x 64"),
        ([{"layers": {"all_but": [6]}}], r"sweep\[0\].layers: the model has layers 0 to 5, not 6"),
        ([{"layers": {"all_but": [0, 1, 2, 3, 4, 5]}}], r"sweep\[0\].layers.all_but: leaves none of the model's 6"),
        ([{"layers": {"all_but": [1]}}, {"layers": [[0, 2, 3, 4, 5]]}], "the same parameters as layers-00-02-to-05"),
        ([{"layers": {"random": {"size": 7}}}], r"sweep\[0\].layers.random.size: 7 is more than the model's 6 layers"),
        ([{"layers": {"random": {"size": 5, "sets": 7}}}], "random.sets: 6 layers have 6 sets of 5, not 7"),
        ([{"layers": {"random": {"size": 1, "sets": 6}}}, {"layers": [0]}], "layer-00 trains the same parameters as"),
        ([{"layers": [7]}], r"sweep\[0\].layers: the model has layers 0 to 5, not 7"),
        ([{"layers": [[1, 7]]}], r"sweep\[0\].layers: the model has layers 0 to 5, not 7"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused(sweep, problem):
    with pytest.raises(ValueError, match=problem):
        names(sweep, layers=None)


def test_the_best_of_each_kind_are_counted_on_the_final_split():
    """Base, full, 6 layers, 2 parts: all 10 on 256 prompts * 4 samples; all but 3 layers once more on 64 * 16."""
    spec = load_spec(DEMO, {"sweep": [{"layers": [1, 2], "modules": "mlp"}], "seeds": [0]})
    plan = Plan(spec, SHAPE, tuple(Run(selection, 0) for selection in swept_selections(spec, SHAPE)))
    assert plan.evaluation_responses == 10 * 256 * 4 + 7 * 64 * 16
