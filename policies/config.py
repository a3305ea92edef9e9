"""The `model` and `algorithm` sections of the spec."""

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from layersweep.policies import algorithms

from .model.architecture import MOST_LAYERS, MOST_UNITS
from .strict import Location, Prompts, StrictModel

AlgorithmConfig = Annotated[
    reduce(or_, (choice for choice in vars(algorithms).values() if isinstance(choice, type))),
    Field(discriminator="type"),
]
"""Every class that `policies.algorithms` imports."""


class PretrainedModel(StrictModel):
    """A model that exists: Llama, Mistral, Phi-3, Qwen2, Qwen3, Qwen3-MoE, OLMo-2, OLMo-3 or Gemma-3 (text)."""

    type: Literal["pretrained"] = "pretrained"
    path: Location
    """A local folder in Hugging Face format, a GGUF file, `smollm2` (SmolLM2-135M-Instruct), or a hub name."""
    revision: Location | None = None
    """Branch, tag or commit of a hub model; null is main. The commit that it means at the start is used throughout."""
    trust_remote_code: bool = False
    """Run code that the model's repository brings. Off unless you have read that code."""
    chat_template: str | None = Field(None, min_length=1)
    """A Jinja template, as text or as the file that holds it, in place of the one that the model brings."""
    template_arguments: dict[str, Any] = {}
    """Variables of the chat template, such as `{enable_thinking: false}` of Qwen3."""


class TinyModel(StrictModel):
    """A small Qwen3 with a character tokenizer that layersweep makes and warms up itself, then caches.

    The warm-up is supervised, on the task's own demonstrations, which are right only in part: the base knows
    the format and is often wrong, as a real base model is.
    """

    type: Literal["tiny"] = "tiny"
    layers: int = Field(6, ge=1, le=MOST_LAYERS)
    hidden_size: int = Field(64, ge=1, le=MOST_UNITS)
    heads: int = Field(2, ge=1, le=MOST_UNITS)
    kv_heads: PositiveInt = 1
    """Divides heads."""
    head_dim: Literal[32, 64, 128] = 32
    """vLLM's CPU attention takes no others."""
    intermediate_size: int = Field(128, ge=1, le=MOST_UNITS)
    initializer_range: float = Field(0.05, gt=0)
    warmup_steps: NonNegativeInt = 130
    """Supervised steps; 0 leaves it random."""
    warmup_batch: Prompts = 128
    warmup_learning_rate: float = Field(2e-3, gt=0)
    minimum_accuracy: float = Field(0.05, ge=0, le=1)
    """The base must reach this at temperature 1; below it RL finds nothing to reinforce."""
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _heads_are_grouped(self) -> "TinyModel":
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.kv_heads} does not divide heads, {self.heads}")
        return self


ModelConfig = Annotated[PretrainedModel | TinyModel, Field(discriminator="type")]
