"""The trainer as a Ray actor: one per run and data-parallel rank."""

import os
from typing import Any

import numpy as np

from policies.algorithm import PolicyGradient
from policies.selection import Selection
from rollout.types import Experience
from workers.config import DeepSpeedConfig, TrainingConfig
from workers.distributed import free_port, prepare
from workers.files import write_atomically


class TrunkChanged(RuntimeError):
    """Something wrote into the weights that a run shares with the base."""


class Trainer:
    """Updates one selection's weights, from one seed's rollouts.

    Args:
        selection, seed: the run.
        rank, ranks: this actor's place among the run's data-parallel ranks.
        gpu: whether the actor holds (a share of) a GPU.
    """

    def __init__(self, selection: Selection, seed: int, rank: int = 0, ranks: int = 1, gpu: bool = False):
        self.selection, self.seed, self.rank, self.ranks, self.gpu = selection, seed, rank, ranks, gpu
        import workers.learner  # noqa: F401

    def __repr__(self) -> str:
        part = f", rank {self.rank}/{self.ranks}" if self.ranks > 1 else ""
        return f"Trainer({self.selection.name}, seed {self.seed}{part})"

    def address(self) -> tuple[str, int]:
        """Where rank 0 will listen."""
        import ray

        return ray.util.get_node_ip_address(), free_port()

    def start(
        self,
        model: str,
        address: tuple[str, int],
        algorithm: PolicyGradient,
        training: TrainingConfig,
        section: DeepSpeedConfig,
        trust_remote_code: bool,
    ) -> dict[str, Any]:
        """Join the run's process group, map the trunk, build the DeepSpeed engine."""
        import torch

        from policies.trunk import Trunk
        from workers.learner import Learner

        prepare(self.rank, self.ranks, *address, gpu=self.gpu)
        torch.manual_seed(self.seed)
        device = "cuda" if self.gpu else "cpu"
        trunk = Trunk.load(model, training.dtype, device, trust_remote_code)
        self.digest = trunk.digest()
        self.learner = Learner(trunk, self.selection, algorithm, training, section, self.rank, self.ranks)
        return {"trainable_parameters": self.learner.parameters, "pid": os.getpid()}

    def update(self, experience: Experience, step: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """One rollout batch; returns its metrics and the new weights by Hugging Face name (rank 0; else none)."""
        from policies.tensors import to_arrays

        metrics = experience.seconds | experience.metrics | self.learner.update(experience, step)
        weights = self.learner.weights()
        return metrics, to_arrays(weights) if self.rank == 0 else {}

    def finish(self, folder: str) -> None:
        """Write the trained parameters to `<folder>/model.safetensors` under their Hugging Face names.

        Raises:
            TrunkChanged: the frozen weights are not what they were at the start; the run is worthless.
        """
        from safetensors.torch import save

        if self.learner.trunk.digest() != self.digest:
            raise TrunkChanged("the frozen weights changed while this run trained")
        weights = {name: weight.cpu().contiguous() for name, weight in self.learner.weights().items()}
        if self.rank == 0:
            write_atomically(f"{folder}/model.safetensors", lambda file: file.write(save(weights)))
