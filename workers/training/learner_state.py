"""A learner's state as safetensors: weights, DeepSpeed's optimizer state of this rank, RNG. Nothing frozen, no pickle.

DeepSpeed's own checkpoints are pickles with one layout per ZeRO stage. Below all of them lies one torch optimizer over
tensors of this rank: the parameters themselves (ZeRO 0 in float32) or float32 masters of them, flat and partitioned.
These and the optimizer's state are saved by position, and the weights by their Hugging Face names.
"""

import torch
from safetensors.torch import load, save
from torch import Tensor

from .learner import Learner

WEIGHT, MASTER, STATE = "weight/", "master/", "optimizer/"
CPU_RNG, CUDA_RNG = "rng/cpu", "rng/cuda"


class WrongCheckpoint(RuntimeError):
    """A checkpoint of another selection, optimizer or number of ranks."""


def dump(learner: Learner) -> bytes:
    """Everything that the learner needs to go on as if it had never stopped. At ZeRO 3 call it on every rank."""
    weights = learner.weights()
    state = {f"{WEIGHT}{name}": weight for name, weight in weights.items() if learner.rank == 0}
    own = {id(parameter) for parameter in learner.policy.parameters()}
    optimizer = learner.engine.basic_optimizer
    for place, tensor in _optimized(learner):
        if id(tensor) not in own:
            state[f"{MASTER}{place}"] = tensor.detach()
        for name, value in optimizer.state.get(tensor, {}).items():
            state[f"{STATE}{place}/{name}"] = torch.as_tensor(value)
    state[CPU_RNG] = torch.get_rng_state()
    if learner.device.type == "cuda":
        state[CUDA_RNG] = torch.cuda.get_rng_state(learner.device)
    return save({name: tensor.cpu().contiguous() for name, tensor in state.items()})


@torch.no_grad()
def restore(learner: Learner, content: bytes) -> None:
    """Put a freshly made learner into the state that `dump` gave. Every rank at the same time, each with its own.

    Raises:
        WrongCheckpoint: it does not fit.
    """
    state = load(content)
    weights = {name.removeprefix(WEIGHT): state.pop(name) for name in list(state) if name.startswith(WEIGHT)}
    with learner.gathered(writer=0) as named:
        if learner.rank == 0:
            if {name: w.shape for name, w in weights.items()} != {name: p.shape for name, p in named.items()}:
                raise WrongCheckpoint("the checkpoint has other parameters than this run trains")
            for name, parameter in named.items():
                parameter.copy_(weights[name])
    optimizer = learner.engine.basic_optimizer
    for place, tensor in _optimized(learner):
        if f"{MASTER}{place}" in state:
            _copy(state.pop(f"{MASTER}{place}"), tensor, place)
        prefix = f"{STATE}{place}/"
        for name in [name for name in state if name.startswith(prefix)]:
            value = state.pop(name)
            # AdamW keeps its step counter on the host, and the moments beside the parameter.
            optimizer.state[tensor][name.removeprefix(prefix)] = value if value.dim() == 0 else value.to(tensor.device)
    torch.set_rng_state(state.pop(CPU_RNG))
    if learner.device.type == "cuda":
        torch.cuda.set_rng_state(state.pop(CUDA_RNG), learner.device)
    if state:
        raise WrongCheckpoint(f"the checkpoint holds {len(state)} tensors too many, such as {next(iter(state))}")


def _optimized(learner: Learner) -> list[tuple[str, Tensor]]:
    """The tensors that the torch optimizer works on, by place."""
    if learner.engine.zero_optimization_stage() == 3:  # which lends them to the optimizer during a step alone
        groups = [[part] for part in learner.engine.optimizer.fp32_partitioned_groups_flat]
    else:
        groups = [group["params"] for group in learner.engine.basic_optimizer.param_groups]
    return [(f"{i}/{j}", tensor) for i, group in enumerate(groups) for j, tensor in enumerate(group)]


def _copy(source: Tensor, target: Tensor, place: str) -> None:
    if source.shape != target.shape:
        raise WrongCheckpoint(f"optimizer tensor {place} has {tuple(source.shape)}, needed {tuple(target.shape)}")
    target.copy_(source)
