"""What only GPUs take, as far as it runs without one."""

import inspect
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from layersweep.policies.model import tensor_transport as tensors
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.trunk import Trunk
from layersweep.policies.selection import Selection
from layersweep.rollout.config import RolloutConfig
from layersweep.rollout.engine.memory import gpu_cache_bytes
from layersweep.workers.config import DeepSpeedConfig
from tests.conftest import save_random_qwen3
from tests.helpers.updates import experience, settings, update_loop


def elsewhere(path: str, folder: str, dtype: str = "float32") -> dict:
    """What tests.helpers.engine_elsewhere saw."""
    command = [sys.executable, "-m", "tests.helpers.engine_elsewhere", path, folder, dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # vLLM logs there too


@pytest.mark.slow
def test_the_v2_model_runner_routes_as_the_first_one_does(model_folder):
    """vLLM's own runner for GPUs, prompts in parts: every run within 1e-5 nats of transformers with its own weights,
    and far from the base's; the same seed gives the same tokens alone."""
    pytest.importorskip("triton")
    seen = elsewhere("v2", model_folder)
    assert seen["v2"] and seen["same_alone"]
    assert max(seen["self_check"], seen["worst"]) < 1e-5
    assert seen["control"] > 1


@pytest.mark.slow
def test_the_v2_model_runner_routes_in_bfloat16(model_folder):
    """The self-check's own limits hold; rounding makes 0.05 nats of this model."""
    pytest.importorskip("triton")
    assert elsewhere("v2", model_folder, "bfloat16")["self_check"] < 0.15


@pytest.fixture(scope="module")
def biased_folder(tmp_path_factory):
    """Qwen2, whose queries, keys and values have biases, with an LM head of its own."""
    folder = tmp_path_factory.mktemp("biased")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False, initializer_range=0.15, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_replays_of_one_capture_serve_every_run(biased_folder):
    """vLLM's own runner, dispatch and capture, each graph a recording that bakes in all but data: eight runs of every
    kind within 1e-5 nats of transformers with their own weights, in changing numbers, padded, preempted, under new
    weights, one in the place of another that ended: no capture after the first. The self-check runs over replays, and
    refuses an engine whose replays keep the rows of the first."""
    pytest.importorskip("triton")
    seen = elsewhere("graphs", biased_folder)
    assert seen["v2"] and seen["same_alone"]
    assert max(seen["self_check"], seen["worst"], seen["mixture"]) < 1e-5
    assert min(seen["control"], seen["mixture_control"]) > 0.1
    assert seen["captures"] == 0
    assert seen["replays"] > 40 and seen["preemptions"] > 0
    assert "log-probabilities differ" in seen["without_rows"]


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """Four heads over two KV heads: two workers can share them."""
    return save_random_qwen3(tmp_path_factory.mktemp("wide"), vocabulary=64, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def untied_folder(tmp_path_factory):
    """A head of its own, and 71 tokens: vLLM fills both up to 128 rows, of which the second worker has 7."""
    folder = tmp_path_factory.mktemp("untied")
    return save_random_qwen3(folder, vocabulary=71, heads=4, kv_heads=2, tied=False)


@pytest.mark.slow
@pytest.mark.parametrize("model", [pytest.param("wide_folder", marks=pytest.mark.long), "untied_folder"])
def test_an_engine_over_two_workers_serves_its_shards(model, request):
    """Spawned, as from a Ray actor: they know the routed model, each has its part of an overlay, and together they
    agree with transformers; a run of the whole model with its parts of embedding and head too."""
    seen = elsewhere("spans", request.getfixturevalue(model))
    assert max(seen["self_check"], seen["whole"]) < 1e-5
    assert seen["whole_control"] > 0.1


@pytest.mark.slow
def test_two_workers_with_one_shard_are_refused(wide_folder):
    assert ": log-probabilities differ" in elsewhere("wrong_shard", wide_folder)["refused"]


def test_a_request_whose_run_is_not_known_is_no_request_of_the_base():
    """The state of vLLM's V2 runner alone knows which run a request belongs to."""
    from layersweep.rollout.engine.model_state import RoutedModelState

    state = RoutedModelState.__new__(RoutedModelState)
    state.runs, state._replaying = {"known": None}, False
    batch = SimpleNamespace(req_ids=["known", "lost"], num_reqs=2, query_start_loc_np=np.arange(3))
    with pytest.raises(KeyError, match="lost"):
        state.prepare_inputs(batch, None)


def test_a_batch_of_the_start_is_the_bases():
    """On GPUs vLLM runs dummy batches before the first request, of requests that nobody has added."""
    from layersweep.rollout.engine.model_state import RoutedModelState

    state = RoutedModelState.__new__(RoutedModelState)
    state.runs, state._replaying, state.rope_state = {}, False, None
    state.model = SimpleNamespace(slots=None, routing="of the batch before")
    batch = SimpleNamespace(req_ids=["req_0_dummy"], num_reqs=1, query_start_loc_np=np.arange(2))
    assert state.prepare_inputs(batch, None) == {}
    assert state.model.routing is None


def test_the_cache_of_a_gpu_is_counted_not_measured():
    """Half of a GPU of 80e9 bytes, less: weights of 100 million parameters in two bytes, a pass of 8,192 rows of
    2 * (2 * 512 + 3 * 2048) numbers, four float32 numbers for each of 1,024 rows of 32,000 logits, and a context.
    """
    shape = Architecture("Qwen3ForCausalLM", 10, 512, 2048, 8, 4, 64, 32_000, True, False, True, 8192)
    expected = 40e9 - 2 * shape.parameters - 8192 * 2 * (2 * 512 + 3 * 2048) * 2 - 1024 * 32_000 * 16 - 2**29
    assert gpu_cache_bytes(shape, RolloutConfig(), 2, 80e9) == expected
    assert gpu_cache_bytes(shape, RolloutConfig(kv_cache_memory_mib=7), 2, 80e9) == 7 * 2**20


def test_where_torch_has_the_parts_of_a_handle():
    names = list(inspect.signature(rebuild_cuda_tensor).parameters)
    assert (names[tensors.DEVICE_INDEX], names[tensors.WAITS]) == ("storage_device", "event_sync_required")


def test_a_handle_is_made_once_for_as_long_as_its_tensor_stays():
    made = []

    def make(weights):
        made.append(sorted(weights))
        return {name: (name, len(made)) for name in weights}

    handles = tensors.Handles(make)
    a, b = torch.zeros(3), torch.zeros(3)
    assert handles.of({"a": a, "b": b}) == {"a": ("a", 1), "b": ("b", 1)}
    a += 1
    assert handles.of({"a": a.detach(), "b": b.detach()}) == {"a": ("a", 1), "b": ("b", 1)}
    assert handles.of({"a": a, "b": b.clone()}) == {"a": ("a", 1), "b": ("b", 3)}
    assert made == [["a", "b"], [], ["b"]]


def test_an_attached_trunk_computes_what_a_loaded_one_does(trunk):
    """Its weights are another process's, its rotary frequencies its own."""
    shared = {"config": trunk.model.config, "weights": tensors.to_arrays(trunk.tensors())}
    attached = Trunk.attach(shared, torch.device("cpu"))
    ids = torch.arange(2, 32)[None]
    assert torch.equal(attached.model(ids).logits, trunk.model(ids).logits)
    assert attached.digest() == trunk.digest()
    assert not any(weight.requires_grad for weight in attached.model.parameters())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_optimizer_state_gives_the_same_weights(trunk, one_rank, stage):
    after = []
    for offload in ("none", "cpu"):
        section = DeepSpeedConfig(full_zero_stage=stage, offload_optimizer=offload)
        loop = update_loop(trunk, Selection.full(), *settings(0.0, 1e-3, 0.5, 1000), section)
        loop.update(experience(), step=0)
        after.append({name: weight.clone() for name, weight in loop.backend.weights().items()})
    for name, weight in after[0].items():
        torch.testing.assert_close(after[1][name], weight, rtol=0, atol=2e-6)


@pytest.mark.parametrize("stage", [0, 1])
def test_bfloat16_weights_are_rounded_float32_masters(model_folder, one_rank, stage):
    """Changes too small for bfloat16 add up in what is trained; what is served is the masters, rounded."""
    algorithm, training = settings(0.0, 1e-4, 0.5, 1000)
    training = training.model_copy(update={"dtype": "bfloat16"})
    base = Trunk.load(model_folder, "bfloat16")
    loop = update_loop(base, Selection.layer(2), algorithm, training, DeepSpeedConfig(layer_zero_stage=stage))
    for step in range(3):
        loop.update(experience(), step)
    masters = [master for group in loop.backend.engine.basic_optimizer.param_groups for master in group["params"]]
    assert {master.dtype for master in masters} == {torch.float32}
    count = sum(weight.numel() for weight in loop.backend.weights().values())
    flat = torch.cat([master.detach().flatten() for master in masters])[:count]
    served = torch.cat([weight.flatten() for weight in loop.backend.weights().values()])
    assert served.dtype == torch.bfloat16
    assert torch.equal(flat.to(torch.bfloat16), served)
    assert (flat != served.float()).float().mean() > 0.5
