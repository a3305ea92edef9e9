"""torch.distributed and DeepSpeed inside a Ray actor."""

import os


def prepare(rank: int, ranks: int, address: str, port: int, gpu: bool) -> None:
    """Set up the process group of one run's trainer, before anything imports DeepSpeed.

    Args:
        rank, ranks: index of this process and size of the run's data-parallel group.
        address, port: on which rank 0 listens.
        gpu: NCCL on the actor's GPU instead of gloo.
    """
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0", MASTER_ADDR=address, MASTER_PORT=str(port))
    if not gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if not gpu:
        # init_distributed would compile a shared-memory op for over a minute, and a process killed meanwhile leaves a
        # lock that hangs the next one; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if gpu else "gloo", auto_mpi_discovery=False, verbose=False, rank=rank, world_size=ranks
    )


def free_port() -> int:
    """Return a TCP port that is free now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
