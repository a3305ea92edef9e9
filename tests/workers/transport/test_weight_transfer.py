"""Weights sent from one process's memory to another's, over Gloo; NCCL takes the same way on GPUs."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from layersweep.rollout.types import TransferFailed
from layersweep.workers.transport import weight_transfer
from layersweep.workers.transport.weight_transfer import (
    WeightManifest,
    WeightReceiver,
    WeightSender,
    choose_transport,
    in_parts,
)

CPU = torch.device("cpu")


def weights(number: int) -> dict[str, torch.Tensor]:
    """Of two types; one is not contiguous. Tensor `number` of an arithmetic sequence, so that no two are alike."""
    return {
        "wide": torch.arange(6.0).reshape(2, 3).T + number,
        "half": torch.full((4,), number, dtype=torch.bfloat16),
        "one": torch.tensor(float(number)),
    }


def _engine(offers, answers):
    receiver = WeightReceiver()
    for offer in iter(offers.get, None):
        answers.put(
            {name: tensor.float().numpy() for name, tensor in whole(receiver.receive("run", offer, CPU)).items()}
        )


def whole(parts) -> dict[str, torch.Tensor]:
    return {name: tensor for part in parts for name, tensor in part.items()}


@pytest.fixture
def engine():
    """Starts engine processes, each with a queue of offers to take and one of what arrived."""
    context, started = multiprocessing.get_context("spawn"), []

    def start():
        offers, answers = context.Queue(), context.Queue()
        process = context.Process(target=_engine, args=(offers, answers), daemon=True)
        process.start()
        started.append(process)
        return process, offers, answers

    yield start
    for process in started:
        process.kill()


def same(got, number: int) -> bool:
    return all((tensor.float().numpy() == got[name]).all() for name, tensor in weights(number).items())


def test_weights_arrive_bit_for_bit_one_offer_after_the_other(engine):
    sender, (_, offers, answers) = WeightSender("127.0.0.1", CPU), engine()
    for number in (1, 2, 3):
        offers.put(sender.offer(weights(number)))
        assert same(answers.get(timeout=60), number)


def test_an_offer_holds_types_and_shapes_and_no_weights():
    offer = WeightSender("127.0.0.1", CPU).offer(weights(1))
    assert offer.layout == {"wide": ("float32", (3, 2)), "half": ("bfloat16", (4,)), "one": ("float32", ())}
    assert set(vars(offer)) == {"address", "number", "layout"}


def test_another_engine_takes_the_next_offer_after_the_first_was_killed(engine):
    sender = WeightSender("127.0.0.1", CPU)
    process, offers, answers = engine()
    offers.put(sender.offer(weights(1)))
    assert same(answers.get(timeout=60), 1)
    process.kill()
    process.join()
    sender.offer(weights(2))  # never received
    _, offers, answers = engine()
    offers.put(sender.offer(weights(3)))
    assert same(answers.get(timeout=60), 3)


def test_one_engine_takes_from_many_trainers_at_the_same_time():
    receiver, senders = WeightReceiver(), [WeightSender("127.0.0.1", CPU) for _ in range(4)]
    given: list[WeightManifest] = [sender.offer(weights(number)) for number, sender in enumerate(senders)]
    with ThreadPoolExecutor() as pool:
        taken = list(pool.map(lambda i: whole(receiver.receive(f"run-{i}", given[i], CPU)), range(4)))
    for number, got in enumerate(taken):
        assert same({name: tensor.float().numpy() for name, tensor in got.items()}, number)
    receiver.forget("run-0")
    again = whole(receiver.receive("run-0", senders[0].offer(weights(9)), CPU))
    assert same({name: tensor.float().numpy() for name, tensor in again.items()}, 9)


# -- trainers that die ------------------------------------------------------------------------------------------------


def large(number: int) -> dict[str, torch.Tensor]:
    """Sixteen tensors of 4 MiB."""
    return {f"{i}": torch.full((1 << 20,), float(number + i)) for i in range(16)}


def _trainer(offers, weights, end: str):
    """Offers weights; with `end` a tensor's name, dies when its turn has come to be sent."""
    if end:
        wanted, own = weights[end], os.getpid()
        weights[end] = SimpleNamespace(
            dtype=wanted.dtype, shape=wanted.shape, to=lambda _: os.kill(own, signal.SIGKILL)
        )
    sender = WeightSender("127.0.0.1", CPU)
    offers.put(sender.offer(weights))
    time.sleep(60)


@pytest.fixture
def trainer():
    """Starts trainer processes that offer weights; each with its offer."""
    context, started = multiprocessing.get_context("forkserver"), []
    context.set_forkserver_preload(["layersweep.workers.transport.weight_transfer"])

    def start(weights, end: str = ""):
        offers = context.Queue()
        process = context.Process(target=_trainer, args=(offers, weights, end), daemon=True)
        process.start()
        started.append(process)
        return process, offers.get(timeout=60)

    yield start
    for process in started:
        process.kill()


def arrived(got, number: int) -> bool:
    return all((got[name] == tensor).all() for name, tensor in large(number).items())


def test_a_trainer_that_is_gone_before_it_is_asked(trainer):
    """The connection is refused at once: no wait for a time limit."""
    process, offer = trainer(large(0))
    process.kill()
    process.join()
    with pytest.raises(TransferFailed, match="^run: its weights did not reach the engine: .*refused"):
        next(WeightReceiver().receive("run", offer, CPU))


@pytest.mark.parametrize("end", ["0", "7", "15"])
def test_a_trainer_that_dies_between_two_tensors(trainer, end):
    """What came before is no use; the next trainer's weights of the run arrive whole."""
    receiver = WeightReceiver()
    _, offer = trainer(large(1), end)
    with pytest.raises(TransferFailed, match="^run: its weights did not reach the engine"):
        whole(receiver.receive("run", offer, CPU))
    _, offer = trainer(large(2))
    assert arrived(whole(receiver.receive("run", offer, CPU)), 2)


def test_a_trainer_that_stands_still_is_waited_for_until_the_time_limit(trainer, monkeypatch):
    monkeypatch.setattr(weight_transfer, "TIMEOUT", timedelta(seconds=1))
    process, offer = trainer(large(0))
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(TransferFailed):
        whole(WeightReceiver().receive("run", offer, CPU))


@pytest.mark.slow
def test_trainers_that_die_at_any_moment(trainer):
    """Twenty, from before they are asked to about when the last tensor is there: all weights or TransferFailed, and
    never a wait for the time limit (seen before: a store that connects, a group joined, and Gloo's first tensor)."""
    receiver, outcomes = WeightReceiver(), []
    _, offer = trainer(large(50))
    began = time.monotonic()
    assert arrived(whole(receiver.receive("run", offer, CPU)), 50)
    undisturbed = time.monotonic() - began
    with ThreadPoolExecutor() as pool:
        for number in range(20):
            process, offer = trainer(large(number))
            if number == 0:  # the one moment that does not depend on how fast the machine is
                process.kill()
            future = pool.submit(lambda offer: whole(receiver.receive("run", offer, CPU)), offer)
            time.sleep(undisturbed * number / 19)
            process.kill()
            try:
                outcomes.append(arrived(future.result(timeout=30), number))
            except TransferFailed:
                outcomes.append(None)
    assert outcomes[0] is None and False not in outcomes
    _, offer = trainer(large(50))
    assert arrived(whole(receiver.receive("run", offer, CPU)), 50)


@pytest.mark.parametrize(
    ("transfer", "trainer", "engine", "expected"),
    [
        ("auto", "GPU-1", "GPU-1", "handle"),
        ("auto", "GPU-1", "GPU-2", "direct"),
        ("auto", "GPU-1", "several", "object_store"),
        ("auto", "cpu", "cpu", "object_store"),
        ("auto", "cpu", "GPU-1", "object_store"),
        ("direct", "cpu", "cpu", "direct"),
        ("direct", "GPU-1", "GPU-1", "handle"),  # NCCL refuses two processes of a group on one GPU
        ("direct", "GPU-1", "several", "object_store"),
        ("object_store", "GPU-1", "GPU-1", "object_store"),
    ],
)
def test_the_way_that_weights_take(transfer, trainer, engine, expected):
    assert choose_transport(transfer, trainer, engine) == expected


def test_copies_in_host_memory_have_no_handles():
    """Between GPUs they are sent from the trainer's, one at a time; on one GPU NCCL takes but one process."""
    ways = [choose_transport("auto", "GPU-1", engine, gathered=True) for engine in ("GPU-1", "GPU-2")]
    assert ways == ["object_store", "direct"]


def test_parts_are_blocks_and_single_weights_outside_of_blocks():
    outer = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    blocks = [
        [f"model.layers.{k}.{name}" for name in ("input_layernorm.weight", "mlp.up_proj.weight")] for k in (1, 11)
    ]
    assert in_parts([outer[0], *blocks[0], *blocks[1], *outer[1:]]) == [outer[:1], *blocks, outer[1:2], outer[2:]]


def test_parts_come_one_at_a_time():
    """The second is received when it is asked for: until then the engine has memory for one alone."""
    sender = WeightSender("127.0.0.1", CPU)
    layout = {f"model.layers.{k}.{name}": torch.full((3,), float(k)) for k in (0, 1) for name in "ab"}
    parts = WeightReceiver().receive("run", sender.offer(layout), CPU)
    for k in (0, 1):
        assert {name: tensor.tolist() for name, tensor in next(parts).items()} == {
            f"model.layers.{k}.{name}": [k] * 3 for name in "ab"
        }
    assert next(parts, None) is None
