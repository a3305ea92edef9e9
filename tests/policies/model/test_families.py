"""Every further family in the trainer against transformers' own model, and its sizes and FLOPs in a plan."""

import copy
from math import prod

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.expert_weights import as_stored
from layersweep.policies.model.stored_weights import StoredWeights
from layersweep.policies.model.tensor_transport import to_arrays
from layersweep.policies.model.tree_attention import TreeAttentionPlan
from layersweep.policies.model.tree_batch import pack
from layersweep.policies.model.trunk import Policy, Trunk
from layersweep.policies.model.variant_weights import low_rank
from layersweep.policies.model.varlen_attention import VarlenPlan
from layersweep.policies.selection import Selection
from tests.helpers.families import FAMILIES, random_model
from tests.helpers.varlen_on_cpu import as_if_on_a_gpu


def experience(lengths: list[tuple[int, list[int]]], seed: int = 0):
    """Prompts, flat response tokens and lengths: of each prompt's length, responses of these."""
    random = np.random.default_rng(seed)
    prompts, responses = [], []
    for prompt, several in lengths:
        tokens = random.integers(2, 32, prompt).astype(np.int32)
        prompts += [tokens] * len(several)
        responses += [random.integers(2, 32, length).astype(np.int32) for length in several]
    return prompts, np.concatenate(responses), np.array([len(response) for response in responses])


def plain_logprobs(model, prompts, tokens, lengths) -> torch.Tensor:
    """Log-probabilities of all response tokens, each sequence by itself, by transformers' own forward."""
    found = []
    for prompt, response in zip(prompts, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, response])).long()[None]
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1)[range(len(response)), torch.from_numpy(response).long()])
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [torch.Tensor, TreeAttentionPlan, VarlenPlan])
def test_a_trainer_computes_what_transformers_does(family, kind):
    """Log-probabilities within 1e-5 nats and the gradients of a block's weights, of responses in trees, under a mask,
    branch by branch, and as sequences of a kernel for GPUs; windows are shorter than the sequences."""
    plain = random_model(family)
    trunk = Trunk(copy.deepcopy(plain))
    lengths = [(40, [80] * 8), (30, [70] * 8)] if kind is TreeAttentionPlan else [(17, [9, 25, 3]), (6, [12, 30])]
    prompts, tokens, counts = experience(lengths)
    (batch,) = pack(prompts, tokens, counts, range(len(prompts)), max_tokens=1 << 20, varlen=kind is VarlenPlan)
    assert isinstance(batch.mask, kind)
    expected = plain_logprobs(plain, prompts, tokens, counts)
    found, policy = torch.empty(len(tokens)), Policy(trunk, Selection.layer(2))
    with as_if_on_a_gpu():
        found[batch.token] = trunk.reference(batch, trunk.prefix(batch, 2), 2, temperature=1.0)
        logp, _ = policy(batch, trunk.prefix(batch, 2), 1.0)
    assert (found - expected).abs().max() < 1e-5
    direction = torch.randn(len(tokens), generator=torch.Generator().manual_seed(1))
    (logp * direction[batch.token]).sum().backward()
    (expected * direction).sum().backward()
    weights = policy.named_weights()
    assert set(weights) == {name for name, _ in plain.named_parameters() if name.startswith("model.layers.2.")}
    for name, weight in weights.items():
        gradient = plain.get_parameter(name).grad
        assert (weight.grad - gradient).abs().max() < 1e-4 * max(1.0, gradient.abs().max().item()), name


@pytest.mark.parametrize("family", ["Gemma3", "Olmo3", "Qwen3Moe"])
def test_an_attached_trunk_of_a_family_is_the_shared_one(family):
    """What is in no state dict travels too: an embedding's scale, two tables of rotary frequencies."""
    trunk = Trunk(random_model(family))
    shared = {"config": trunk.model.config, "weights": to_arrays(trunk.tensors())}
    attached = Trunk.attach(shared, torch.device("cpu"))
    ids = torch.arange(2, 32)[None]
    assert torch.equal(attached.model(ids).logits, trunk.model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_knows_a_familys_weights(family, tmp_path):
    """Names and shapes are those of transformers' parameters, and in files those that it saves."""
    from layersweep.policies.model.checkpoint import stored_tensors

    model = random_model(family)
    model.save_pretrained(tmp_path)
    shape = Architecture.from_folder(tmp_path)
    known = shape.outer_weights | shape.weights_of(range(4))
    assert known == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shape.parameters == sum(prod(size) for size in known.values())
    stored = {name: tensor.shape for name, tensor in stored_tensors(tmp_path).items()}
    assert shape.outer_weights | shape.stored_weights == stored


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_block_are_the_whole_block(family):
    """Each weight is in one of attention, mlp and norms; a router goes with the experts."""
    block = [name for name, _ in random_model(family).named_parameters() if name.startswith("model.layers.1.")]
    parts = {part: Selection.part((1,), part) for part in ("attention", "mlp", "norms")}
    of = {name: [part for part, selection in parts.items() if selection.trains(name)] for name in block}
    assert all(len(found) == 1 for found in of.values()), of
    assert all(("mlp" in name) == (found == ["mlp"]) for name, found in of.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_counts_the_flops_that_torch_counts(family, tmp_path):
    """Of one token by itself, which attends to one position; a plan also counts 2 for each entry of a block's vectors,
    which torch does not count. Of six experts two compute."""
    from torch.utils.flop_counter import FlopCounterMode

    from layersweep.orchestrator.planning.cost_model import forward_flops

    model = random_model(family, attn_implementation="eager", experts_implementation="eager")
    model.save_pretrained(tmp_path)
    shape = Architecture.from_folder(tmp_path)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.tensor([[3]]))
    vectors = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.dim() == 1)
    assert forward_flops(shape, 1) == counter.get_total_flops() + 2 * vectors


@pytest.mark.parametrize("family", ["Qwen3Moe", "Phi3"])
def test_files_hold_experts_one_by_one(family, tmp_path):
    """Put together they are transformers' parameters, and taken apart again what it saved; others are as stored."""
    model = random_model(family)
    model.save_pretrained(tmp_path)
    stored, parameters = StoredWeights(str(tmp_path)), dict(model.named_parameters())
    assert set(stored) == set(parameters) and len(stored) == len(parameters)
    assert all(torch.equal(stored[name], parameter) for name, parameter in parameters.items())
    files = load_file(tmp_path / "model.safetensors")
    apart = as_stored({name: parameter.detach() for name, parameter in parameters.items()})
    assert apart.keys() == files.keys() and all(torch.equal(apart[name], files[name]) for name in files)


def test_the_nearest_weights_of_a_rank_are_each_experts():
    experts = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(low_rank(experts, 2), torch.stack([low_rank(expert, 2) for expert in experts]), atol=1e-6)
    assert torch.linalg.matrix_rank(low_rank(experts, 2)).tolist() == [2, 2, 2]
