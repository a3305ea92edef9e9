"""Environment variables of every process of a sweep; set before Ray starts, so that its idle workers have them."""


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
