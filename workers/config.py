"""The `training`, `deepspeed` and `resources` sections of the spec."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag, field_validator, model_validator

from layersweep.policies.strict import MOST_PROCESSES, Processes, Prompts, Samples, StopString, StrictModel

RAY_UNIT = 1e-4
"""Least part of a CPU or GPU."""
Rate = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class LearningRates(StrictModel):
    """Peak learning rates. A single number in the spec sets both, as the study did."""

    layer: Rate = 5e-6
    """Rate of runs that train some layers."""
    full: Rate = 5e-6
    """Rate of the run that trains every parameter."""

    def of(self, whole: bool) -> float:
        """Return the rate of a run that trains every parameter, or of one that trains some layers."""
        return self.full if whole else self.layer

    @property
    def policy(self) -> str:
        """The `learning_rate_policy` column of the contribution table."""
        return "shared" if self.layer == self.full else "by kind"


class LearningRateTuning(StrictModel):
    """Peak learning rates found by trial before the sweep: `{tune: [1e-6, 3e-6, 5e-6, 1e-5], steps: 20}`.

    Trials use the first seed and are scored on the selection split. The smallest rate within one standard error of the
    best is used: noise cannot tell them apart, and too high a rate ruins a long run where too low a one slows it.
    """

    tune: tuple[Rate, ...] = Field(min_length=2)
    """Candidates; each gets a run of its own, and a row in the tables that is no layer's."""
    steps: PositiveInt
    """Steps of each trial: the first ones of a run, warm-up and schedule as in the sweep."""
    reuse: Literal["full", "per_kind"] = "full"
    """`full`: tried on the full run and used by every run, as in the study. `per_kind`: runs over layers get a rate of
    their own, tried on the middle layer."""

    @field_validator("tune")
    @classmethod
    def _rates_differ(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if len({f"{rate:g}" for rate in rates}) < len(rates):
            raise ValueError("names a learning rate twice")
        return rates

    @property
    def policy(self) -> str:
        """The `learning_rate_policy` column of the contribution table."""
        return "tuned for full" if self.reuse == "full" else "tuned per kind"


def _form(value: object) -> str:
    """Name the model class that a `learning_rate` is meant for."""
    tuning = isinstance(value, dict) and value.keys() & LearningRateTuning.model_fields.keys()
    return LearningRateTuning.__name__ if tuning or isinstance(value, LearningRateTuning) else LearningRates.__name__


LearningRatePolicy = Annotated[
    Annotated[LearningRates, Tag(LearningRates.__name__)]
    | Annotated[LearningRateTuning, Tag(LearningRateTuning.__name__)],
    Discriminator(_form),
]


class TrainingConfig(StrictModel):
    """How every run trains."""

    steps: PositiveInt = 100
    """Rollout batches of a run."""
    prompts_per_step: Prompts = 32
    group_size: Samples = 8
    """Responses per prompt; advantages compare within them."""
    minibatches: PositiveInt = 1
    """Optimizer steps per epoch over one rollout batch; prompts are split evenly."""
    epochs: PositiveInt = 1
    """Passes over one rollout batch."""
    learning_rate: LearningRatePolicy = LearningRates()
    """One number, `{layer: ..., full: ...}`, or `{tune: [...], steps: ...}`: it changes the ranking of layers."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up. linear and cosine are as transformers has them: the rate would be
    0 at the step after the last."""
    schedule_unit: Literal["batch", "optimizer_step"] = "batch"
    """Unit of the schedule: each rollout batch, as in verl, or each optimizer step, of which a batch
    has `minibatches` x `epochs`, as in TRL. Warm-up and end are at the same batches either way."""
    warmup_steps: NonNegativeInt = 0
    """Rollout batches over which the learning rate rises linearly. Its first value is a step's share of the peak, not
    0 as in transformers: that would waste the first batch."""
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """`muon` (Jordan 2024) for the matrices of the decoder blocks, momentum 0.95, scaled so that its updates are as
    large as AdamW's, and AdamW for everything else. Without ZeRO alone, which splits matrices. `adamw_8bit` (Dettmers
    et al. 2022) is AdamW with both moments in 8 bits, a quarter of their memory, for tensors of 4,096 entries or more;
    it needs the package bitsandbytes."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's decay rates of the first and the second moment, each in [0, 1)."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW and Muon."""
    decay_norms_and_biases: bool = True
    """Whether weight decay shrinks the weights of norms and biases too, as matrices."""
    gradient_clip: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global L2 norm."""
    max_response_tokens: PositiveInt = 1024
    """Tokens of a response at most; one that reaches it without an end of its own counts as truncated."""
    stop: tuple[StopString, ...] = ()
    """Strings that end a response, such as a line break after a few-shot prompt; evaluation stops at them too."""
    include_stop: bool = False
    """Leave the stop string in the text that is scored. The tokens up to its end are trained on either way."""
    temperature: float = Field(1.0, gt=0, le=2)
    """Sampling temperature of the rollouts; the trainer's log-probabilities are taken at the same."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations; with bfloat16, DeepSpeed keeps float32 master weights of what trains."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens that a trainer computes at a time: memory against speed. null follows from the memory
    that is there, for each run by what it trains; `layersweep plan` says the number."""
    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Activation checkpointing: a trainer keeps the input of each block alone, and computes the block once more in the
    backward pass: the same numbers with less memory, in about a third more time. `auto` is on for the updates of which
    a micro batch, if only of one long response, would not fit into the memory for activations otherwise."""
    attention: Literal["auto", "masked"] = "auto"
    """`auto`: where trainers compute in bfloat16 on GPUs, torch's FlashAttention over prompt and responses as sequences
    of their own lengths, which is held against plain attention before a trainer starts; elsewhere as `masked`: under
    masks of all pairs of tokens, or response by response where that takes less."""
    prefix_cache_mib: NonNegativeInt = 1024
    """MiB of a trainer for what several epochs share: the input of the first trained layer, computed in the first. What
    does not fit is computed in each."""

    @field_validator("learning_rate", mode="before", json_schema_input_type=float | LearningRatePolicy)
    @classmethod
    def _one_rate_for_all(cls, rate: object) -> object:
        # YAML 1.1 reads 5e-6, without a point, as a string.
        return {"layer": rate, "full": rate} if isinstance(rate, int | float | str) else rate

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingConfig":
        if self.prompts_per_step % self.minibatches:
            raise ValueError(
                f"minibatches: {self.minibatches} does not divide prompts_per_step {self.prompts_per_step}"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} leaves nothing of steps {self.steps}")
        if isinstance(self.learning_rate, LearningRateTuning):
            trial = self.learning_rate.steps
            if not self.warmup_steps < trial <= self.steps:
                raise ValueError(
                    f"learning_rate.steps: a trial of {trial} steps must end after the warm-up ({self.warmup_steps}) "
                    f"and within steps {self.steps}"
                )
        return self


class DeepSpeedConfig(StrictModel):
    """DeepSpeed's settings that the user may choose; batch sizes, dtype and clipping follow from `training`."""

    layer_zero_stage: Literal[0, 1] = 0
    """ZeRO stage of runs that train some layers: their optimizer state is 1/L of a model, so 0 or 1."""
    full_zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage of the run that trains every parameter; 2 or 3 when it spans several GPUs."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Keep the full run's optimizer state in host memory (stages 1 to 3)."""

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> "DeepSpeedConfig":
        if self.offload_optimizer == "cpu" and self.full_zero_stage == 0:
            raise ValueError("offload_optimizer: cpu needs full_zero_stage 1, 2 or 3")
        return self


class ActorResources(StrictModel):
    """Resources that one actor requests from Ray."""

    cpus: float = Field(1.0, ge=0, le=MOST_PROCESSES)
    gpus: float = Field(0.0, ge=0, le=MOST_PROCESSES)
    """GPUs; a fraction lets several actors share one."""

    @model_validator(mode="after")
    def _ray_can_count_them(self) -> "ActorResources":
        for name, quantity in (("cpus", self.cpus), ("gpus", self.gpus)):
            if 0 < quantity < RAY_UNIT:
                raise ValueError(f"{name}: {quantity:g} is below {RAY_UNIT:g}, the least that Ray counts; 0 is none")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus: {self.gpus:g}: Ray gives a share of one GPU or whole GPUs; round it")
        return self


class ResourcesConfig(StrictModel):
    """Resources of the sweep's actors, and how many there are."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of engines and trainers; `auto` is cuda where they request GPUs."""
    engines: Processes = 1
    """Number of vLLM engines; runs are assigned to them in turn."""
    engine: ActorResources = ActorResources(cpus=0.5)
    trainer: ActorResources = ActorResources(cpus=0.1)
    """Resources of each rank of a layer run."""
    full_trainer: ActorResources | None = None
    """Resources of each rank of the full run; null is as `trainer`."""
    trainer_ranks: Processes = 1
    """Data-parallel ranks of a layer run."""
    full_trainer_ranks: Processes = 1
    """Data-parallel ranks of the full run."""
    concurrent_runs: Processes | None = None
    """Runs that train at the same time; null is as many as the cluster has capacity for, as it grows and shrinks."""
    wait_for_nodes: float = Field(0.0, ge=0)
    """Seconds to wait for an autoscaling cluster to grow to what the sweep needs at least; its autoscaler is told what
    all runs together could use. 0 refuses at once what cannot be placed."""

    @model_validator(mode="after")
    def _device_matches(self) -> "ResourcesConfig":
        asked = [self.engine, self.trainer] + ([self.full_trainer] if self.full_trainer else [])
        if self.device == "cpu" and any(actor.gpus for actor in asked):
            raise ValueError("device: cpu, but actors ask for gpus: set their gpus to 0 or device to cuda")
        if self.device == "cuda" and not all(actor.gpus for actor in asked):
            raise ValueError("device: cuda needs gpus above 0 for engine and trainer")
        if len({bool(actor.gpus) for actor in asked}) > 1:
            raise ValueError("gpus: engine and trainers must all ask for GPUs, or none")
        whole = "full_trainer" if self.full_trainer else "trainer"
        for ranks, name in ((self.trainer_ranks, "trainer"), (self.full_trainer_ranks, whole)):
            if ranks > 1 and 0 < getattr(self, name).gpus <= 0.5:
                raise ValueError(
                    f"{name}.gpus: {getattr(self, name).gpus:g}: two of {ranks} ranks could meet on one GPU, and NCCL "
                    "takes a GPU for one rank of a run only; ask for more than 0.5"
                )
        return self

    def on_gpu(self) -> bool:
        """Return whether engines and trainers compute on GPUs."""
        return self.engine.gpus > 0


class RecoveryConfig(StrictModel):
    """Checkpoints, retries and timeouts."""

    checkpoint_every: PositiveInt = 5
    """Steps between a run's checkpoints: at most so many are repeated after a failure. A checkpoint is written while
    the next responses are generated."""
    keep: PositiveInt = 2
    """Checkpoints kept of a run while it trains; the one before is used where the last is damaged."""
    retries: NonNegativeInt = 3
    """Failures in a row, without a new step between them, that are recovered from before a run counts as failed."""
    patience: float = Field(300.0, gt=0)
    """Seconds after which an actor that does not answer, or an engine that has work and finishes no step of it, is
    replaced; so is one whose call takes longer than this and than ten times the longest such call before it."""
