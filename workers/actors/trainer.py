"""The trainer as a Ray actor: one per run and data-parallel rank."""

import os
import time
from typing import TYPE_CHECKING, Any

from layersweep.policies.algorithms.base import PolicyGradient
from layersweep.policies.selection import Selection, run_name
from layersweep.rollout.types import Experience
from layersweep.workers.config import DeepSpeedConfig, TrainingConfig
from layersweep.workers.startup.tiny_model import ModelSource
from layersweep.workers.storage.files import write_atomically
from layersweep.workers.storage.run_store import CheckpointRecord, CorruptFile, RunStore, rank_file
from layersweep.workers.storage.tables import STEPS
from layersweep.workers.training.distributed import free_port, prepare
from layersweep.workers.training.memory import release_freed_memory

if TYPE_CHECKING:
    from layersweep.policies.model.tensor_transport import TransportTensors
    from layersweep.workers.transport.weight_transfer import WeightManifest


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
        self.run = run_name(selection.name, seed)
        import layersweep.workers.training.learner  # noqa: F401

    def __repr__(self) -> str:
        part = f", rank {self.rank}/{self.ranks}" if self.ranks > 1 else ""
        return f"Trainer({self.selection.name}, seed {self.seed}{part})"

    def address(self) -> tuple[str, int]:
        """Where rank 0 will listen."""
        import ray

        return ray.util.get_node_ip_address(), free_port()

    def node(self) -> str:
        """Ray's id of the node that this actor is on."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def start(
        self,
        model: ModelSource,
        address: tuple[str, int],
        algorithm: PolicyGradient,
        training: TrainingConfig,
        section: DeepSpeedConfig,
        trust_remote_code: bool,
        engine_device: str,
        transfer: str,
        shared_trunk: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """Join the run's process group, map the trunk, build the DeepSpeed engine.

        Args:
            engine_device: layersweep.policies.model.tensor_transport.device_name of the run's engine, or `several`.
            transfer: `rollout.weight_transfer` of the spec.
            shared_trunk: from the BaseWeightsActor of this GPU; None loads the checkpoint (mapped, on CPUs).
        """
        import torch

        from layersweep.policies.model.tensor_transport import Handles, device_name
        from layersweep.policies.model.trunk import Trunk
        from layersweep.workers.training.learner import Learner
        from layersweep.workers.transport.weight_transfer import WeightSender, way

        from .shared_gpu import whereabouts

        prepare(self.rank, self.ranks, *address, gpu=self.gpu)
        torch.manual_seed(self.seed)
        if shared_trunk:
            trunk = Trunk.attach(shared_trunk, torch.device("cuda", 0))
        else:
            trunk = Trunk.load(model.here(), training.dtype, "cuda" if self.gpu else "cpu", trust_remote_code)
        self.way = way(transfer, device_name() if self.gpu else "cpu", engine_device)
        if self.way == "direct" and self.rank == 0:
            self.outlet = WeightSender(address[0])
        self.handles = Handles()
        self.digest = trunk.digest()
        self.steps = 0
        self.learner = Learner(trunk, self.selection, algorithm, training, section, self.rank, self.ranks)
        return {
            "trainable_parameters": self.learner.parameters,
            "pid": os.getpid(),
            "trunk": self.digest,
            "where": whereabouts(),
        }

    def update(self, experience: Experience, step: int) -> "tuple[dict[str, float], TransportTensors | WeightManifest]":
        """One rollout batch; returns its metrics and `weights()`.

        Raises:
            UnknownColumn: a metric that steps.parquet has no column for.
        """
        metrics = experience.seconds | experience.metrics | self.learner.update(experience, step)
        STEPS.check(metrics)
        release_freed_memory(self.gpu)
        self.steps = step + 1
        return metrics, self.weights()

    def weights(self) -> "TransportTensors | WeightManifest":
        """The trained parameters by Hugging Face name (rank 0; of other ranks none).

        On the engine's own GPU these are handles, and with direct transfer an offer; both are good until the next call.
        """
        from layersweep.policies.model.tensor_transport import to_arrays

        weights = self.learner.weights()  # gathered: every rank takes part
        if self.rank != 0:
            return {}
        if self.way == "direct":
            return self.outlet.offer(weights)
        if self.way == "object_store":
            return to_arrays(weights)
        return self.handles.of(weights)

    def save(self, folder: str, step: int) -> tuple[str, str, float]:
        """This rank's part of a checkpoint, to the ledger of the sweep in `folder`. Returns its name and checksum, and
        the CPU seconds that it took.

        Raises:
            OSError: it could not be written.
            RuntimeError: the weights are of another step.
        """
        from layersweep.workers.training.learner_state import dump

        if step != self.steps:
            raise RuntimeError(f"asked for a checkpoint of step {step}, the weights are of step {self.steps}")
        name, cpu = rank_file(self.rank), time.process_time()
        written = RunStore(folder, self.run).write_file(step, name, dump(self.learner))
        return name, written, time.process_time() - cpu

    def completed(self) -> int:
        """Steps done."""
        return self.steps

    def problem(self, folder: str, record: CheckpointRecord) -> str | None:
        """What is wrong with this rank's part of a checkpoint; None where nothing is."""
        try:
            RunStore(folder, self.run).read_file(record, rank_file(self.rank))
        except CorruptFile as error:
            return str(error)
        return None

    def restore(self, folder: str, record: CheckpointRecord) -> None:
        """Go on from a checkpoint. All ranks at the same time.

        Raises:
            Damaged: this rank's file is not what was written.
            WrongCheckpoint: it is of another selection, optimizer or number of ranks.
        """
        from layersweep.workers.training.learner_state import restore

        restore(self.learner, RunStore(folder, self.run).read_file(record, rank_file(self.rank)))
        self.steps = record.step

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
            write_atomically(f"{folder}/model.safetensors", lambda file: file.write(save(weights)), durable=True)
