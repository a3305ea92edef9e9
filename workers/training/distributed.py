"""torch.distributed and DeepSpeed inside a Ray actor."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore


def serve_store() -> "TCPStore":
    """Serve a key-value store at which processes meet, on a port that the system chooses (`port`), while it lives.

    A port that is looked for first and taken later may be another process's by then.
    """
    import torch.distributed as dist

    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def prepare(rank: int, ranks: int, address: str, port: int, gpu: bool) -> None:
    """Set up the process group of one run's trainer, before anything imports DeepSpeed.

    Args:
        rank, ranks: index of this process and size of the run's data-parallel group.
        address, port: of the store (`serve_store`) at which the ranks meet.
        gpu: NCCL on the actor's GPU instead of gloo.
    """
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0", MASTER_ADDR=address, MASTER_PORT=str(port))
    if not gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import torch
    import torch.distributed as dist
    from deepspeed.constants import default_pg_timeout as timeout

    if not gpu:
        # init_distributed would compile a shared-memory op for over a minute, and a process killed meanwhile leaves a
        # lock that hangs the next one; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if gpu else "gloo"
    if not dist.is_initialized():  # as it is where an engine runs in the same process
        store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
        # A group of one has no peer: bound to a device, torch would split a communicator for every group made later.
        device = torch.device("cuda", 0) if gpu and ranks > 1 else None
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout, device_id=device)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)  # takes the group over
