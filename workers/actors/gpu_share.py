"""The arithmetic of a GPU that several layer trainers share. No Ray: a plan and a run count alike."""

from layersweep.workers.config import ActorResources

EPSILON = 1e-9
BASE_WEIGHTS_CPUS = 0.1
"""CPUs of the BaseWeightsActor."""
BASE_WEIGHTS_SHARE = 0.05
"""Share of a GPU that Ray counts for the BaseWeightsActor; the memory that it takes is the base model's."""


def trainers_per_gpu(share: float, gpus: float) -> int:
    """Return how many trainers fit on a shared GPU, beside the base weights.

    Args:
        share: of the GPU that layer trainers and base weights have together.
        gpus: of one trainer, a fraction.
    """
    return max(0, int((share - BASE_WEIGHTS_SHARE) / gpus + EPSILON))


def shared_gpu_cpus(share: float, trainer: ActorResources) -> float:
    """Return the CPUs of a shared GPU's bundle: its trainers' and the BaseWeightsActor's."""
    return trainers_per_gpu(share, trainer.gpus) * trainer.cpus + BASE_WEIGHTS_CPUS
