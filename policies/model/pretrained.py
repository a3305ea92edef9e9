"""Loading a base model with transformers, from a folder, as its weights say that it is."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from .checkpoint import head_is_tied, stored_tensors


def load_pretrained(folder: str, dtype: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load the model in a folder; in the dtype stored on disk its weights are the mapped files themselves.

    Args:
        dtype: name of a torch dtype.
        trust_remote_code: whether code that the folder brings may run.

    Raises:
        ValueError: weights that cannot be read.
    """
    named: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(folder, **named)
    tied = head_is_tied(stored_tensors(Path(folder)))
    if tied is not None:
        config.tie_word_embeddings = tied
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=getattr(torch, dtype), use_safetensors=True, **named
    )
