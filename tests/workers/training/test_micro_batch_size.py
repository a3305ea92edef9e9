"""The default micro batch, from shapes and memory by hand."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.model.architecture import Architecture, GpuKernels
from layersweep.policies.model.known_models import KNOWN_MODELS
from layersweep.policies.selection import Selection
from layersweep.workers.config import DeepSpeedConfig, TrainingConfig
from layersweep.workers.training import micro_batch_size
from layersweep.workers.training.micro_batch_size import (
    activation_bytes_per_token,
    expected_kernels,
    micro_batch_tokens,
)

SMOLLM2 = Architecture(
    "LlamaForCausalLM", layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152,
    tied=True, qkv_bias=False, qk_norm=False, max_positions=8192,
)  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """Sets the machine's memory in GiB."""

    def of(gib: float) -> None:
        monkeypatch.setattr(micro_batch_size.psutil, "virtual_memory", lambda: SimpleNamespace(total=gib * 2**30))

    return of


def test_what_a_block_keeps_of_a_token():
    """2 * 576 float32 numbers for the norms, and 4 * 576 + 3 * 1536 = 6,912; as it trains 2 * 576 + 576 + 1536 +
    2 * 576 = 4,416 more. In 30 blocks of 4 bytes, or the last two of 2, and 576 float32 numbers for the final norm.
    With checkpointing 576 a block."""
    assert activation_bytes_per_token(SMOLLM2, Selection.full(), 4) == 30 * 4 * (1152 + 6912 + 4416) + 4 * 576
    assert activation_bytes_per_token(SMOLLM2, Selection.layer(28), 2) == 2 * (4608 + 2 * 6912) + 2 * 4416 + 4 * 576
    assert activation_bytes_per_token(SMOLLM2, Selection.layer(28), 2, checkpointing=True) == 2 * 2 * 576 + 4 * 576


def test_on_cpus_a_share_of_the_machines_memory_up_to_a_bound(machine):
    """256 MiB is a 64th of 16 GiB: 178 tokens of 1,499,904 bytes through 30 blocks, 532 of 503,808 through 15, 3,177 of
    84,480 through 2. On 12 GiB it is 192 MiB: 134 tokens. On 1 GiB nothing fits: 128."""
    training = TrainingConfig()
    machine(64)
    found = [
        micro_batch_tokens(training, SMOLLM2, s) for s in (Selection.full(), Selection.layer(15), Selection.layer(28))
    ]
    assert found == [178, 532, 3177]
    machine(12)
    assert micro_batch_tokens(training, SMOLLM2, Selection.full()) == 134
    machine(1)
    assert micro_batch_tokens(training, SMOLLM2, Selection.full()) == 128


def test_on_a_gpu_a_quarter_of_the_trainers_part():
    """Qwen3-8B: norms 4 * (2 * 4096 + 5120) = 53,248 bytes, 2 * (4 * 4096 + 3 * 12288) = 106,496 besides, and
    2 * (2 * 4096 + 4096 + 12288 + 13312) = 75,776 as it trains; times 36 blocks, and 16,384: 8,495,104 a token. A
    quarter of half of 80e9 bytes are 1,177 of them. FlashAttention has keys and values of 8 heads, twice, instead of
    32: 2 * (2 * 4096 + 4 * 1024 + 3 * 12288) = 98,304 and 4 * 32: 8,204,800 a token, 1,218 of them. Fused, norms keep
    2 * 13,312 and nothing as they train, of the gate 2 * 12,288 are not kept, and of the last norm 8,192: 5,394,944 a
    token, 1,853 of them."""
    shape = Architecture.from_config(KNOWN_MODELS["Qwen/Qwen3-8B-Base"])
    training = TrainingConfig(dtype="bfloat16")
    of = {
        kernels: micro_batch_tokens(training, shape, Selection.full(), 40e9, kernels)
        for kernels in (GpuKernels(), GpuKernels(varlen=True), GpuKernels(varlen=True, fused=True), None)
    }
    assert list(of.values()) == [1177, 1218, 1853, 1853]


def test_which_kernels_a_plan_expects():
    """A model with heads of 264, and float32, go without FlashAttention, and experts without fused modules."""
    shape = Architecture.from_config(KNOWN_MODELS["Qwen/Qwen3-8B-Base"])
    half = TrainingConfig(dtype="bfloat16")
    assert expected_kernels(half, shape, gpu=True) == GpuKernels(varlen=True, fused=True)
    assert expected_kernels(half, shape, gpu=False) == GpuKernels()
    assert expected_kernels(TrainingConfig(), shape, gpu=True) == GpuKernels(fused=True)
    assert expected_kernels(half, replace(shape, head_dim=264), gpu=True) == GpuKernels(fused=True)
    masked = TrainingConfig(dtype="bfloat16", attention="masked")
    assert expected_kernels(masked, shape, gpu=True) == GpuKernels(fused=True)
    experts = replace(shape, name="Qwen3MoeForCausalLM")
    assert expected_kernels(half, experts, gpu=True) == GpuKernels(varlen=True)


def test_the_spec_has_the_last_word(machine):
    machine(1)
    assert micro_batch_tokens(TrainingConfig(micro_batch_tokens=5000), SMOLLM2, Selection.full()) == 5000


def _rank(rank: int, port: int, folder: str, out) -> None:
    from layersweep.policies.model.trunk import Policy, Trunk
    from layersweep.workers.training.distributed import prepare
    from layersweep.workers.training.setup import TrainingSetup
    from tests.helpers.updates import leave_group

    prepare(rank, 2, "127.0.0.1", port, gpu=False)
    total = (2, 1)[rank] * 2**30  # of CPUs, in place of a kernel that one rank lacks
    micro_batch_size.psutil.virtual_memory = lambda: SimpleNamespace(total=total)
    setup = TrainingSetup(GRPO(), TrainingConfig(max_response_tokens=8), DeepSpeedConfig(), "float32")
    loop = setup.update_loop(Policy(Trunk.load(folder, "float32"), Selection.full()), rank=rank, ranks=2)
    out.put((loop.training.micro_batch_tokens, loop.unchecked_tokens, total))
    leave_group()


def test_all_ranks_take_what_the_least_of_them_has_room_for(model_folder):
    """A 64th of 1 GiB for a micro batch, an eighth for one that is not checkpointed, also where there are 2 GiB."""
    from multiprocessing import get_context

    from layersweep.workers.training.distributed import serve_store

    context, store = get_context("spawn"), serve_store()
    out = context.SimpleQueue()
    ranks = [context.Process(target=_rank, args=(rank, store.port, model_folder, out)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    found = [out.get() for _ in ranks]
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    shape = Architecture.from_config(json.loads((Path(model_folder) / "config.json").read_text()))
    token = activation_bytes_per_token(shape, Selection.full(), 4)
    assert {total for *_, total in found} == {2**30, 2**31}
    assert {(tokens, unchecked) for tokens, unchecked, _ in found} == {(int(2**24 / token), 2**27 / token)}
