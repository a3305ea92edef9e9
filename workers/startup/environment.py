"""Environment of every process of a sweep: variables, set before Ray starts, so that its idle workers have them, and
the working folder on a cluster that was started elsewhere."""

import contextlib
import os

FOLDER = "LAYERSWEEP_FOLDER"
"""Variable with the driver's working folder."""


def worker_environment(gpu: bool) -> dict[str, str]:
    """Return the variables that vLLM, DeepSpeed and torch read at import.

    Args:
        gpu: whether the sweep's engines and trainers are on GPUs.
    """
    shared = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in its actor: weights are pushed between its steps
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # the driver reports a failed run itself, in one line
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if gpu:
        return shared
    return shared | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",  # actors are the parallelism
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "CUDA_VISIBLE_DEVICES": "",
    }


def enter_folder() -> None:
    """Change into the driver's working folder, if this machine has it, before code of the user's own is called: it then
    reads the same files as when it was tried. A Ray that the sweep starts has it already."""
    with contextlib.suppress(OSError):
        os.chdir(os.environ.get(FOLDER, "."))
