"""The `task`, `rollout` and `evaluation` sections of the spec."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from layersweep.policies.strict import MOST_PROMPTS, Processes, Prompts, Samples, StopString, StrictModel, written_as
from layersweep.rollout.environments.alfworld import AlfWorldConfig
from layersweep.rollout.environments.custom import CustomEnvironmentConfig
from layersweep.rollout.environments.demo_gridworld import GridWorldConfig
from layersweep.rollout.environments.gymnasium import GymnasiumConfig
from layersweep.rollout.environments.textarena import TextArenaConfig
from layersweep.rollout.environments.textworld import TextWorldConfig
from layersweep.rollout.tasks.code import CodeConfig
from layersweep.rollout.tasks.custom import CustomTaskConfig
from layersweep.rollout.tasks.demo.count_bits import CountBitsConfig
from layersweep.rollout.tasks.demo.expressions import ExpressionsConfig
from layersweep.rollout.tasks.demo.sort_digits import SortDigitsConfig
from layersweep.rollout.tasks.math import MathConfig
from layersweep.rollout.tasks.prompts import PromptsConfig
from layersweep.rollout.tasks.reasoning_gym import ReasoningGymConfig

CPU_KV_CACHE_MIB = 512
"""KV cache of an engine on CPUs where the spec gives no `rollout.kv_cache_memory_mib`."""

TaskConfig = Annotated[
    CountBitsConfig
    | CodeConfig
    | CustomEnvironmentConfig
    | CustomTaskConfig
    | ExpressionsConfig
    | MathConfig
    | PromptsConfig
    | ReasoningGymConfig
    | SortDigitsConfig
    | AlfWorldConfig
    | GridWorldConfig
    | GymnasiumConfig
    | TextArenaConfig
    | TextWorldConfig,
    Field(discriminator="type"),
]


class RolloutConfig(StrictModel):
    """The vLLM engine that generates every run's responses."""

    batching: Literal["auto", "mixed", "swap"] = "auto"
    """`mixed`: all runs in one continuous batch, each row through its own run's weights. `swap`: one run at a
    time. `auto` measures both on the first rollouts and keeps the faster."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is the trainer's dtype, which keeps engine and trainer log-probabilities closest."""
    max_num_seqs: PositiveInt = 1024
    """Responses that are decoded at the same time; the rest wait."""
    max_num_batched_tokens: PositiveInt = 8192
    """Tokens of one forward pass at most."""
    max_model_len: int | None = Field(None, ge=64)
    """Prompt and response tokens at most. null is the model's own limit, on CPUs at most `max_num_batched_tokens`.
    The engine's self-check needs 64."""
    kv_cache_memory_mib: PositiveInt | None = None
    """KV cache; null is 512 MiB on CPUs, or more where one sequence of `max_model_len` needs it, and on GPUs what
    `gpu_memory_utilization` leaves. Counted from the model's shape, not measured: trainers beside an engine that is
    replaced do not change it."""
    gpu_memory_utilization: float = Field(0.5, gt=0, le=1)
    """Share of a GPU's memory that the engine takes for weights, activations and KV cache; overlays come on top."""
    sleep: bool = False
    """Alternate generation and training, for engine and trainers that share a GPU without memory for KV cache and
    activations at once: all runs generate, then all train. Meanwhile engines keep their weights in host memory and no
    cache (vLLM's sleep level 1). Costs the overlap of the two, and was never run on a GPU."""
    staleness: Literal[0, 1] = 0
    """Training steps between the weights that generate a batch and those that are updated on it. 1: the engine
    generates a run's next batch while its trainer updates, so that a step takes the longer of the two, not both (one
    step off-policy). The first step after a checkpoint that a run resumes from is of staleness 0. Comparisons use 0."""
    tensor_parallel_size: Processes = 1
    """GPUs that one engine spans, each with its part of every run's weights, the whole model's too. Seen with two
    workers on CPUs, not run on GPUs yet."""
    weight_transfer: Literal["auto", "direct", "object_store"] = "auto"
    """How a run's weights reach its engine. `auto`: as a CUDA IPC handle on the same GPU, over NCCL between GPUs, and
    through Ray's object store otherwise. `direct`: between CPUs too, over Gloo, without the object store. An engine
    that spans GPUs always gets them through the object store."""
    prefix_caching: bool = True
    """Reuse the KV cache of equal prompts, per run and version of its weights."""
    cuda_graphs: bool = False
    """Decode under CUDA graphs, whatever runs are mixed, so that kernel launches bound no step. Runs' weights lie in
    stacks that stay where they are; graphs are captured anew (seconds) when a run comes for whose modules there is no
    free place in them. Batches of more than 512 responses, and those with prompts, run as without. For engines on one
    NVIDIA GPU each; not with `sleep`, nor for experts and OLMo. **Not run on a GPU yet: neither its gain nor its memory
    has been measured.** The engine's self-check covers it, and refuses to start rather than serve wrong weights."""

    @model_validator(mode="after")
    def _graphs_need_their_weights_in_place(self) -> "RolloutConfig":
        if self.cuda_graphs and self.sleep:
            raise ValueError("cuda_graphs: not with sleep, which was never tried; set one of them false")
        if self.cuda_graphs and self.tensor_parallel_size > 1:
            raise ValueError("cuda_graphs: not for engines that span GPUs; set it or tensor_parallel_size back")
        return self


class SuiteConfig(StrictModel):
    """One named evaluation set."""

    name: Annotated[str, written_as(r"(?!\.+$)[A-Za-z0-9_.-]{1,64}", "1 to 64 letters, digits, `_`, `.`, `-`")]
    """Letters, digits, `_`, `.`, `-`."""
    task: TaskConfig | None = None
    """Source of its prompts; null is the task that is trained."""
    counts: bool = True
    """Whether it is part of the score S. One that is not (another domain, say) is scored like the others and shown
    beside them, in `contribution_by_suite.parquet`: what else a run learned, or forgot."""
    prompts: Prompts = 512
    """Prompts of the `selection` split."""
    final_prompts: int = Field(0, ge=0, le=MOST_PROMPTS)
    """Prompts of the `final` split, on which base, full and the best layers are scored once more, with four
    times the samples; 0 leaves it out."""
    samples: Samples = 4
    """Responses per prompt; a prompt's score is their mean (pass@1). Below 4 the interval widens."""
    temperature: float = Field(1.0, ge=0, le=2)
    """0 is greedy; then one sample is enough."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the likeliest tokens that hold this share of the probability; 1 is all tokens."""
    top_k: int = Field(0, ge=0)
    """Sample among this many likeliest tokens; 0 is all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Leave out tokens of less than this share of the likeliest token's probability; 0 leaves out none."""
    stop: tuple[StopString, ...] | None = None
    """Strings that end a response; null is `training.stop`."""
    max_response_tokens: PositiveInt | None = None
    """null is the training limit."""

    @model_validator(mode="after")
    def _greedy_needs_one_sample(self) -> "SuiteConfig":
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("greedy responses are all the same: set samples: 1, or a temperature above 0")
        return self


class EvaluationConfig(StrictModel):
    """Suites that a run is scored on, and when. The score S is the mean over suites that count."""

    suites: tuple[SuiteConfig, ...] = Field((SuiteConfig(name="default"),), min_length=1)
    """The score of a run is the mean over those that count."""
    greedy: bool = False
    """Adds one greedy response per prompt, recorded as suite `NAME@greedy`, not part of the score."""
    every: int = Field(0, ge=0)
    """Evaluate also after every so many steps; 0 is at the end alone."""
    finalists: PositiveInt = 3
    """How many of the best layers are scored on the `final` split, beside base and full; of `sweep` as many of the
    parts, and as many of the sets of layers."""
    seed_sd: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Standard deviation of S between RL seeds, known from other sweeps, in the unit of the scores: intervals then
    cover seeds too, even where one seed is trained. null estimates it where several are, and else leaves it out."""

    @model_validator(mode="after")
    def _names_differ(self) -> "EvaluationConfig":
        names = [suite.name for suite in self.suites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"suite names must differ, {twice[0]!r} is used twice")
        return self

    @model_validator(mode="after")
    def _one_suite_counts(self) -> "EvaluationConfig":
        if not any(suite.counts for suite in self.suites):
            raise ValueError("suites: no suite counts, so there is no score; remove `counts: false` from one")
        return self
