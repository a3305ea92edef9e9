"""The trainer as a Ray actor: one per run and data-parallel rank."""

import os
import time
from typing import TYPE_CHECKING, Any

from layersweep.policies.selection import Selection, run_name
from layersweep.rollout.types import Experience
from layersweep.workers.startup.model_source import ModelSource
from layersweep.workers.storage.files import write_atomically
from layersweep.workers.storage.run_store import CheckpointRecord, CorruptFile, RunStore, rank_file
from layersweep.workers.storage.tables import STEPS
from layersweep.workers.training.distributed import prepare, serve_store
from layersweep.workers.training.drawn_reward import DrawnReward
from layersweep.workers.training.memory import release_unused
from layersweep.workers.training.setup import TrainingSetup

from .portable_errors import portable_errors

if TYPE_CHECKING:
    from layersweep.policies.model.tensor_transport import TransportTensors
    from layersweep.workers.transport.weight_transfer import WeightManifest


class TrunkChanged(RuntimeError):
    """Something wrote into the weights that a run shares with the base."""


@portable_errors
class Trainer:
    """Updates one selection's weights, from one seed's rollouts.

    Args:
        selection, seed: the run.
        rank, ranks: this actor's place among the run's data-parallel ranks.
        gpus: GPUs that the actor holds, a fraction or more; with 0 it computes on CPUs.
        reward: of a control, in place of the task's.
    """

    def __init__(
        self, selection: Selection, seed: int, rank: int = 0, ranks: int = 1, gpus: float = 0.0,
        reward: DrawnReward | None = None,
    ):  # fmt: skip
        self.selection, self.seed, self.rank, self.ranks = selection, seed, rank, ranks
        self.gpus, self.gpu, self.reward = gpus, gpus > 0, reward
        self.run = run_name(selection.name, seed)
        import layersweep.workers.training.deepspeed_backend
        import layersweep.workers.training.update_loop  # noqa: F401

    def __repr__(self) -> str:
        part = f", rank {self.rank}/{self.ranks}" if self.ranks > 1 else ""
        return f"Trainer({self.selection.name}, seed {self.seed}{part})"

    def address(self) -> tuple[str, int]:
        """Return the address and port at which the run's ranks meet; asked of rank 0."""
        import ray

        self.store = serve_store()
        return ray.util.get_node_ip_address(), self.store.port

    def node(self) -> str:
        """Return Ray's id of the node that this actor is on."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def start(
        self,
        model: ModelSource,
        address: tuple[str, int],
        setup: TrainingSetup,
        engine_device: str,
        transfer: str,
        shared_trunk: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Join the run's process group, map the trunk, make the training backend.

        Args:
            model: the base, the same object for all actors.
            address: where the ranks meet, from rank 0's `address`.
            setup: of the run.
            engine_device: layersweep.policies.model.tensor_transport.device_name of the run's engine, or `several`.
            transfer: `rollout.weight_transfer` of the spec.
            shared_trunk: from the BaseWeightsActor of this GPU; None loads the checkpoint (mapped, on CPUs).

        Returns:
            Number of trainable parameters, process id, digest of the trunk's weights, and host with GPUs.
        """
        import torch

        from layersweep.policies.model.tensor_transport import Handles, device_name
        from layersweep.policies.model.trunk import Policy, Trunk
        from layersweep.workers.transport.weight_transfer import WeightSender, choose_transport

        from .ray_placement import host_and_gpus

        prepare(self.rank, self.ranks, *address, gpu=self.gpu)
        torch.manual_seed(self.seed)
        gathered = self.selection.trains_all and setup.deepspeed.full_zero_stage == 3
        self.transport = choose_transport(transfer, device_name() if self.gpu else "cpu", engine_device, gathered)
        if self.gpu and self.transport != "handle":
            # Micro batches of all sizes would leave holes. Memory behind handles must stay in segments of its own.
            torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
        if shared_trunk:
            trunk = Trunk.attach(shared_trunk, torch.device("cuda", 0), setup.training.attention)
        else:
            trunk = Trunk.load(
                model.here(), setup.training.dtype, "cuda" if self.gpu else "cpu", model.trust_remote_code,
                setup.training.attention,
            )  # fmt: skip
        if self.transport == "direct" and self.rank == 0:
            self.sender = WeightSender(address[0], torch.device("cuda", 0) if self.gpu else torch.device("cpu"))
        self.handles = Handles()
        self.digest, self.steps = trunk.digest(), 0
        gpu_bytes = min(1.0, self.gpus) * torch.cuda.get_device_properties(0).total_memory if self.gpu else 0.0
        policy = Policy(trunk, self.selection)
        parameters = sum(parameter.numel() for parameter in policy.parameters())
        self.loop = setup.update_loop(policy, gpu_bytes, self.rank, self.ranks)
        self.backend = self.loop.backend
        return {
            "trainable_parameters": parameters,
            "pid": os.getpid(),
            "trunk": self.digest,
            "where": host_and_gpus(),
        }

    def update(
        self, experience: Experience, step: int
    ) -> "tuple[dict[str, float | None], TransportTensors | WeightManifest]":
        """Train on one rollout batch; return its metrics and `weights()`.

        Raises:
            UnknownColumn: a metric that steps.parquet has no column for.
        """
        trained_on = self.reward.instead(experience, self.seed, step) if self.reward else experience
        metrics = experience.seconds | experience.metrics | self.loop.update(trained_on, step)
        # The learning curve is one of the task's reward, whatever was trained on.
        metrics |= {"reward_mean": float(experience.reward.mean()), "reward_std": float(experience.reward.std())}
        metrics["staleness"] = step - experience.version
        STEPS.check(metrics)
        release_unused(self.gpu)
        self.steps = step + 1
        return metrics, self.weights()

    def weights(self) -> "TransportTensors | WeightManifest":
        """Return the trained weights by Hugging Face name, adapters merged (rank 0; other ranks return none).

        On the engine's own GPU these are handles, with direct transfer a manifest; both are valid until the next call.
        """
        from layersweep.policies.model.tensor_transport import to_arrays

        weights = self.backend.weights()  # gathered: every rank takes part
        if self.rank != 0:
            return {}
        weights = self.backend.policy.served(weights)
        if self.transport == "direct":
            return self.sender.offer(weights)
        if self.transport == "object_store":
            return to_arrays(weights)
        return self.handles.of(weights)

    def save(self, folder: str, step: int) -> tuple[str, str, float]:
        """Write this rank's part of a checkpoint to the run's store below `folder`.

        Returns:
            File name, checksum, and the CPU seconds that it took.

        Raises:
            OSError: it could not be written.
            RuntimeError: the weights are of another step.
        """
        from layersweep.workers.storage.tensor_file import write_tensors
        from layersweep.workers.training.training_state import dump

        if step != self.steps:
            raise RuntimeError(f"asked for a checkpoint of step {step}, the weights are of step {self.steps}")
        name, cpu = rank_file(self.rank), time.process_time()
        state = dump(self.backend, self.rank, self.loop.device)
        checksum = RunStore(folder, self.run).write_file(step, name, lambda file: write_tensors(file, state))
        return name, checksum, time.process_time() - cpu

    def completed(self) -> int:
        """Return the number of steps done."""
        return self.steps

    def problem(self, folder: str, record: CheckpointRecord) -> str | None:
        """Say what is wrong with this rank's part of a checkpoint; None where nothing is."""
        try:
            RunStore(folder, self.run).read_file(record, rank_file(self.rank))
        except CorruptFile as error:
            return str(error)
        return None

    def restore(self, folder: str, record: CheckpointRecord) -> None:
        """Continue from a checkpoint. Call it on all ranks at the same time.

        Raises:
            CorruptFile: this rank's file is not what was written.
            WrongCheckpoint: it is of another selection, optimizer or number of ranks.
        """
        from layersweep.workers.training.training_state import restore

        content = RunStore(folder, self.run).read_file(record, rank_file(self.rank))
        restore(self.backend, self.rank, self.loop.device, content)
        self.steps = record.step

    def finish(self, folder: str) -> None:
        """Write the trained weights, adapters merged, to `<folder>/model.safetensors` under their Hugging Face names.

        Raises:
            TrunkChanged: the frozen weights are not what they were at the start; the run is worthless.
        """
        from layersweep.workers.storage.tensor_file import write_tensors

        if self.loop.trunk.digest() != self.digest:
            raise TrunkChanged("the frozen weights changed while this run trained")
        weights = self.backend.weights()  # gathered: every rank takes part
        if self.rank == 0:
            weights = self.backend.policy.served(weights)
            write_atomically(f"{folder}/model.safetensors", lambda file: write_tensors(file, weights), durable=True)
