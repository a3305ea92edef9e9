"""The arithmetic of a GPU that several layer trainers share. No Ray: a plan and a run count alike."""

from layersweep.workers.config import ActorResources

EPSILON = 1e-9
BASE_WEIGHTS_CPUS = 0.1
"""Of the trunk's host."""
BASE_WEIGHTS_SHARE = 0.05
"""Of a GPU, as Ray counts, for the trunk that layer trainers share; the memory it takes is the trunk's."""


def aboard(share: float, gpus: float) -> int:
    """How many trainers of so many GPUs fit into a berth of this share, beside its trunk."""
    return max(0, int((share - BASE_WEIGHTS_SHARE) / gpus + EPSILON))


def berth_cpus(share: float, trainer: ActorResources) -> float:
    """CPUs of a berth: its trainers', and the trunk's host's."""
    return aboard(share, trainer.gpus) * trainer.cpus + BASE_WEIGHTS_CPUS
