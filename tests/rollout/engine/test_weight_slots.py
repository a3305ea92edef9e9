"""Static slots against F.linear, F.embedding and a norm written out, recorded once and replayed over other rows, other
runs and other weights."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layersweep.rollout.engine.memory import capture_sizes
from layersweep.rollout.engine.row_routing import RowRouting
from layersweep.rollout.engine.slot_modules import grouped_products, selected_products
from layersweep.rollout.engine.weight_slots import WeightSlots
from tests.helpers.recorded_graph import RecordedGraph

ROWS, WIDTH, OUT = 12, 16, 24
Q, UP = "model.layers.0.attn.q", "model.layers.0.mlp.up"
PRODUCTS = [grouped_products, selected_products]


def make_slots(**more: nn.Module) -> WeightSlots:
    """Make slots over a model of three modules, and more; as a model, its modules' copies have no memory."""
    modules = {Q: nn.Linear(WIDTH, OUT), UP: nn.Linear(WIDTH, OUT, bias=False), "model.norm": nn.RMSNorm(WIDTH), **more}
    model = nn.Module().requires_grad_(False)
    for name, module in modules.items():
        parent = model
        for part in name.split(".")[:-1]:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name.rpartition(".")[2], module.requires_grad_(False))
    return over(model, modules)


def over(model: nn.Module, modules: dict[str, nn.Module]) -> WeightSlots:
    without_memory = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    copies = {name: copy.deepcopy(module, dict(without_memory)) for name, module in modules.items()}
    return WeightSlots(model, copies, ROWS, torch.device("cpu"))


def put(slots: WeightSlots, run: str, name: str, seed: int) -> list[torch.Tensor]:
    """Give a run weights in a module; returns them, weight and bias."""
    memory = slots.take(run, [name])
    torch.manual_seed(seed)
    for parameter in memory.values():
        parameter.data.normal_()
    return [parameter.detach().clone() for parameter in memory.values()]


def batch(*requests: tuple[str | None, int]) -> RowRouting:
    return RowRouting([run for run, _ in requests], np.array([rows for _, rows in requests]), torch.device("cpu"))


def expected(x, base, requests, weights):
    """Row by row; `weights` has each run's weight and bias, without an entry where it is the base's."""
    rows = iter(x)
    of_row = [run for run, count in requests for _ in range(count)]
    of_row += [None] * (len(x) - len(of_row))
    return torch.stack([F.linear(next(rows), *weights.get(run, base)) for run in of_row])


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("bias", [True, False])
def test_one_recording_serves_any_mixture_and_any_weights(products, bias):
    """Two runs and the base, in other numbers at each replay, one or both absent, padded; then other weights in the
    same slots; then a third run in the slot of one that ended."""
    slots, name = make_slots(), Q if bias else UP
    weights = {"a": put(slots, "a", name, 1), "b": put(slots, "b", name, 2)}
    module, x = slots.model.get_submodule(name), torch.randn(ROWS, WIDTH)
    base = [parameter.detach().clone() for parameter in module.parameters()]
    with RecordedGraph() as graph:
        biases = slots.stack(name, "bias") if bias else None
        result = products(x, slots.stack(name, "weight"), biases, slots.rows(name, ROWS))
    recorded = slots.structure

    def replays(*requests):
        x.normal_()
        slots.fill(batch(*requests), ROWS)
        graph.replay()
        torch.testing.assert_close(result, expected(x, base, requests, weights), atol=1e-5, rtol=0)

    replays(("a", 3), (None, 2), ("b", 4), ("a", 1))
    replays(("b", 1), ("a", 11))
    replays((None, 2), (None, 1))
    replays(("b", 12))
    weights["a"] = put(slots, "a", name, 3)
    replays((None, 1), ("a", 1), ("b", 1))
    slots.free("a")
    weights["c"] = put(slots, "c", name, 4)
    replays(("c", 2), ("b", 3), (None, 1), ("c", 5))
    assert slots.structure == recorded


def test_a_number_read_on_the_device_cannot_be_recorded():
    """The recorder is as strict as a capture."""
    with RecordedGraph():
        with pytest.raises(RuntimeError, match="cannot be captured"):
            torch.ones(3).nonzero()
        with pytest.raises(RuntimeError, match="cannot be captured"):
            torch.ones(()).item()


def test_the_rows_of_a_batch_by_hand():
    """Requests of run b (1 row), the base (1), a (2), b (1), one row of padding; a holds slot 1, b slot 2. In the norm
    b alone holds one."""
    slots = make_slots()
    for run, name in (("a", Q), ("b", Q), ("b", "model.norm")):
        slots.take(run, [name])
    slots.fill(batch(("b", 1), (None, 1), ("a", 2), ("b", 1)), 6)
    rows = slots.rows(Q, 6)
    assert rows.index.tolist() == [2, 0, 1, 1, 2, 0]
    assert rows.order.tolist() == [1, 5, 2, 3, 0, 4]
    assert rows.places.tolist() == [4, 0, 2, 3, 5, 1]
    assert rows.ends.tolist() == [2, 4, 6]
    norm = slots.rows("model.norm", 6)
    assert norm.index.tolist() == [1, 0, 0, 0, 1, 0] and norm.ends.tolist() == [4, 6]
    slots.fill(None, 3)
    assert not slots.rows(Q, 3).index.any() and slots.rows(Q, 3).ends.tolist() == [3, 3, 3]


def test_what_changes_the_structure():
    """A slot more, or a group whose modules are held differently; not a push, nor a run in another's slot."""
    slots, seen = make_slots(), []

    def changed() -> bool:
        seen.append(slots.structure)
        return len(seen) > 1 and seen[-1] != seen[-2]

    changed()
    slots.take("a", [Q, UP])
    assert changed()
    slots.take("a", [Q, UP])
    assert not changed()
    slots.free("a")
    slots.take("b", [UP, Q])
    assert not changed()
    slots.free("b")
    slots.take("c", [UP])  # the slot of one module of the block alone
    assert changed()
    slots.take("d", [Q])
    assert not changed()
    slots.take("e", [Q])  # a second slot
    assert changed()


def test_weights_follow_when_a_stack_grows():
    """Those of a run, and the base's, which have memory of their own again at the end."""
    slots, copied = make_slots(), nn.Linear(WIDTH, OUT)
    base = slots.model.get_submodule(Q).weight
    before = base.clone()
    own = slots.take("a", [Q])
    copied.weight, copied.bias = own.values()
    slots.adopt("a", {Q: copied})
    copied.weight.data.fill_(5)
    slots.take("b", [Q])
    stack = slots.stack(Q, "weight")
    assert stack.shape == (3, OUT, WIDTH)
    assert [base.data_ptr(), copied.weight.data_ptr()] == [stack[0].data_ptr(), stack[1].data_ptr()]
    assert (copied.weight == 5).all() and torch.equal(base, before)
    with pytest.raises(RuntimeError, match="slots are held by a, b"):
        slots.clear()
    slots.free("a")
    slots.free("b")
    slots.clear()
    assert not slots.has(Q) and torch.equal(base, before)
    assert base.untyped_storage().nbytes() == before.nbytes


def test_a_gpu_that_is_full_leaves_all_as_it_was_but_the_graphs(monkeypatch):
    """At the third tensor: a module's weight and bias, the next one's weight. What had room until then has moved, so
    recordings are of another structure; the base is right, and slots are taken and given back as before."""
    slots, real = make_slots(), torch.empty
    base = {name: p.clone() for name, p in slots.model.named_parameters()}
    recorded, left = slots.structure, iter([True, True])

    def empty(*args, **kwargs):
        if next(left, False):
            return real(*args, **kwargs)
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(torch.OutOfMemoryError):
        slots.take("a", [Q, UP])
    monkeypatch.undo()
    assert slots.structure > recorded and slots.has(Q) and not slots.has(UP)
    assert all(torch.equal(p, base[name]) for name, p in slots.model.named_parameters())
    weights = put(slots, "a", UP, 1)
    slots.fill(batch(("a", 1), (None, 2)), 3)
    x = torch.randn(3, WIDTH)
    result = selected_products(x, slots.stack(UP, "weight"), None, slots.rows(UP, 3))
    torch.testing.assert_close(result, expected(x, [base[f"{UP}.weight"]], [("a", 1), (None, 2)], {"a": weights}))
    slots.free("a")
    slots.clear()
    assert all(torch.equal(p, base[name]) for name, p in slots.model.named_parameters())


def test_a_tied_head_of_a_run_follows_when_the_stack_grows():
    """It is a parameter of its own over the embedding's memory, as `OverlayBuilder` makes modules ready."""
    embedding, head = nn.Embedding(8, WIDTH), nn.Linear(WIDTH, 8, bias=False)
    head.weight = embedding.weight
    slots = make_slots(lm_head=head, embed=embedding)
    (parameter,) = slots.take("a", ["lm_head", "embed"]).values()
    copies = {"embed": nn.Embedding(8, WIDTH), "lm_head": nn.Linear(WIDTH, 8, bias=False)}
    for module in copies.values():
        module.weight = nn.Parameter(parameter.data, requires_grad=False)
    slots.adopt("a", copies)
    slots.take("b", ["embed"])
    moved = slots.stack("embed", "weight")[1].data_ptr()
    assert [module.weight.data_ptr() for module in copies.values()] == [moved, moved]


def test_a_head_holds_no_slot_and_a_tied_one_is_the_embedding():
    embedding, head = nn.Embedding(8, WIDTH), nn.Linear(WIDTH, 8, bias=False)
    slots = make_slots(lm_head=head)
    (parameter,) = slots.take("a", ["lm_head"]).values()
    assert parameter.shape == (8, WIDTH) and not slots.has("lm_head")
    head.weight = embedding.weight
    slots = make_slots(lm_head=head, embed=embedding)
    (parameter,) = slots.take("a", ["lm_head", "embed"]).values()
    stack = slots.stack("embed", "weight")
    assert parameter.data_ptr() == stack[1].data_ptr() and head.weight.data_ptr() == stack[0].data_ptr()


def test_capture_sizes():
    assert capture_sizes(1) == [1]
    assert capture_sizes(40) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40]
    assert capture_sizes(1024)[-3:] == [256, 384, 512]


@pytest.mark.parametrize("kind", ["RMSNorm", "GemmaRMSNorm"])
def test_norms_of_vllm_through_each_rows_weights(kind):
    """Three rows of run a, one of the base: hidden states alone, with a residual, and heads of queries."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers import layernorm

    from layersweep.rollout.engine.slot_modules import install

    with set_current_vllm_config(VllmConfig()):
        model, own = (nn.ModuleDict({"norm": getattr(layernorm, kind)(WIDTH)}) for _ in range(2))
    for norm in (model["norm"], own["norm"]):
        norm.requires_grad_(False).weight.normal_()
    slots = over(model, {"norm": nn.RMSNorm(WIDTH)})
    install(model, slots)
    (parameter,) = slots.take("a", ["norm"]).values()
    parameter.data.copy_(own["norm"].weight)
    slots.fill(batch(("a", 2), (None, 1), ("a", 1)), 4)
    slots.active, owned = True, [0, 1, 3]
    for shape, with_residual in (((4, WIDTH), False), ((4, WIDTH), True), ((4, 3, WIDTH), False)):
        inputs = [torch.randn(shape) for _ in range(1 + with_residual)]
        found, runs = (norm(*(x.clone() for x in inputs)) for norm in (model["norm"], own["norm"]))
        slots.active = False
        base = model["norm"](*(x.clone() for x in inputs))
        slots.active = True
        if with_residual:
            assert torch.equal(found[1], sum(inputs))
            found, base, runs = found[0], base[0], runs[0]
        torch.testing.assert_close(found[owned], runs[owned], atol=1e-6, rtol=0)
        torch.testing.assert_close(found[2], base[2], atol=1e-6, rtol=0)
        assert (runs - base).abs().max() > 0.1


def test_a_module_of_another_kind_is_refused():
    from layersweep.rollout.engine.slot_modules import install

    model = nn.ModuleDict({"norm": nn.LayerNorm(WIDTH)})
    with pytest.raises(ValueError, match=r"rollout.cuda_graphs: norm is a LayerNorm"):
        install(model, over(model, dict(model)))


@pytest.mark.parametrize("architecture", ["Olmo2ForCausalLM", "Qwen3MoeForCausalLM", "Qwen3ForCausalLM"])
def test_engines_without_a_gpu_or_with_other_modules_are_refused(architecture):
    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.arguments import engine_args

    reason = "this engine has no GPU" if architecture == "Qwen3ForCausalLM" else f"not for {architecture}"
    with pytest.raises(ValueError, match=f"rollout.cuda_graphs: {reason}"):
        engine_args("nowhere", architecture, RolloutConfig(cuda_graphs=True), "float32", 0)
