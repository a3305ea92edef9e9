"""The state of a run's training as safetensors: weights by Hugging Face name, the backend's state of this rank, RNG.

Nothing frozen, and no pickle.
"""

import torch
from safetensors.torch import load
from torch import Tensor

from .backend import TrainerBackend, WrongCheckpoint

WEIGHT = "weight/"
CPU_RNG, CUDA_RNG = "rng/cpu", "rng/cuda"


def dump(backend: TrainerBackend, rank: int, device: torch.device) -> dict[str, Tensor]:
    """Return all that a rank needs to continue bit for bit: no copies, valid until the next update.

    Call it on every rank; weights are in rank 0's alone.
    """
    weights = backend.weights()
    state = {f"{WEIGHT}{name}": weight for name, weight in weights.items() if rank == 0}
    state |= backend.state()
    state[CPU_RNG] = torch.get_rng_state()
    if device.type == "cuda":
        state[CUDA_RNG] = torch.cuda.get_rng_state(device)
    return state


@torch.no_grad()
def restore(backend: TrainerBackend, rank: int, device: torch.device, content: bytes) -> None:
    """Put a new backend into the state of a file of what `dump` gave. Call it on every rank, each with its own content.

    Raises:
        WrongCheckpoint: it does not fit.
    """
    state = load(content)
    weights = {name.removeprefix(WEIGHT): state.pop(name) for name in list(state) if name.startswith(WEIGHT)}
    torch.set_rng_state(state.pop(CPU_RNG))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state.pop(CUDA_RNG), device)
    for name, parameter in backend.gathered(writer=0):
        if rank == 0:
            weight = weights.pop(name, None)
            if weight is None or weight.shape != parameter.shape:
                raise WrongCheckpoint(f"the checkpoint has other parameters than this run trains: {name}")
            parameter.copy_(weight)
    if weights:
        raise WrongCheckpoint(f"the checkpoint has parameters that this run does not train: {next(iter(weights))}")
    backend.load_state(state)
