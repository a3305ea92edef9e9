"""vLLM's asynchronous engine over one trunk, in which a request's LoRA name stands for a run's overlay."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm import SamplingParams
from vllm.inputs import EngineInput
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from layersweep.rollout.config import RolloutConfig
from layersweep.rollout.engine.arguments import engine_args
from layersweep.rollout.engine.row_routing import RUN


@dataclass(frozen=True)
class ServedModel:
    """Model beside the base: a finished run, or several added up."""

    name: str
    files: dict[str, float]
    """Local safetensors of the runs' trained weights, each with the factor of its change of the base."""


class RunEngine(AsyncLLM):
    """Engine of a server: the base, and the models that were loaded over it."""

    @classmethod
    def start(
        cls, model: str, architecture: str, config: RolloutConfig, dtype: str, trust_remote_code: bool = False
    ) -> "RunEngine":
        """Start the engine's process, with the base alone.

        Args:
            model: a folder, with its tokenizer.
            architecture: the first of the model config's `architectures`.
            config: the spec's `rollout` section.
            dtype: of weights and KV cache.
            trust_remote_code: whether code that the folder brings may run.

        Raises:
            ValueError: an architecture that cannot be routed.
            RuntimeError: the process cannot start.
        """
        args = replace(
            engine_args(model, architecture, config, dtype, 0, trust_remote_code),
            skip_tokenizer_init=False,
            # As OpenAI's: of the model's own distribution, before the temperature; and no sampling defaults of its own.
            logprobs_mode="raw_logprobs",
            generation_config="vllm",
            scheduling_policy="fcfs",
        )
        vllm_config = args.create_engine_config(UsageContext.OPENAI_API_SERVER)
        return cls.from_vllm_config(vllm_config, disable_log_stats=True)

    async def prepare(self) -> None:
        """Install routing; called once, before the first model is loaded."""
        await self.collective_rpc("install_routing")

    async def load(self, model: ServedModel) -> int:
        """Serve a model beside the base; returns the bytes of its weights."""
        return (await self.collective_rpc("load_overlay", args=(model.name, model.files)))[0]

    def generate(
        self,
        prompt: EngineInput,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
        **options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generate as AsyncLLM does, with the overlay that the LoRA request names; None is the base."""
        name = lora_request.lora_name if lora_request else None
        others: Mapping[str, Any] = sampling_params.extra_args or {}
        # Always replaced: a client may send arguments of this name too.
        sampling_params.extra_args = {k: v for k, v in others.items() if k != RUN} | ({RUN: name} if name else {})
        salt = f"{name or ''}/{prompt.get('cache_salt', '')}"
        return super().generate(prompt | {"cache_salt": salt}, sampling_params, request_id, **options)
