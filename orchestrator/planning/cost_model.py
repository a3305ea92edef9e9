"""Cost of a sweep on GPUs, from arithmetic and memory traffic: a model for planning, not a measurement.

Counted per token of context c: a block's matrices are 2 FLOPs a parameter, its attention 4 FLOPs a query dimension and
position of context; a backward pass costs as much once for the activations and once for the weights. Generation reads
the weights once per forward pass and the cache of every sequence in it; the slower of arithmetic and memory counts.
Left out: waiting, start-up, transfers of weights (a push is one layer), rewards, and the tail of long answers.
"""

import math
from dataclasses import dataclass

from layersweep.policies.algorithms.rollout_correction import resolve
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.selection import Selection
from layersweep.rollout.config import TaskConfig
from layersweep.rollout.engine.memory import cache_element_bytes
from layersweep.workers.training.micro_batch_size import (
    activation_bytes,
    expected_kernels,
    micro_batch_tokens,
    unchecked_tokens,
)

from .cluster_shape import H200, GpuKind
from .plan import Plan
from .selections import count_active

UNKNOWN_PROMPT_TOKENS = 256
"""Tokens of a prompt where no tokenizer is at hand."""


@dataclass(frozen=True)
class Assumptions:
    """Figures that a spec does not give."""

    response_share: float = 0.5
    """Mean response, as a share of the limit."""
    turn_share: float = 0.5
    """Mean episode, as a share of its most turns."""
    prompt_tokens: int | None = None
    """Tokens of a question; None is what they are on average where the tokenizer is at hand, else 256. An episode's
    turn counts as half of the section's max_prompt_tokens."""
    arithmetic: float = 0.4
    """Share of the peak FLOPs that is reached."""
    bandwidth: float = 0.6
    """Share of the peak bandwidth that is reached."""

    def text(self, plan: Plan) -> str:
        """Say what is assumed of a plan."""
        _, prompt = _turns_and_prompt(plan, "task", self)
        mean = " on average, as they are" if self.prompt_tokens is None and "task" in plan.prompt_tokens else ""
        return (
            f"responses of {self.response_share:.0%} of the limit, prompts of {prompt:.0f} tokens{mean} "
            f"(episodes: half the limits of turns and prompt), {self.arithmetic:.0%} of peak arithmetic, "
            f"{self.bandwidth:.0%} of peak bandwidth, one run's batch at a time, nothing waiting"
        )


@dataclass(frozen=True)
class GpuHours:
    """GPU-hours by phase."""

    rollout: float
    update: float
    evaluation: float

    @property
    def total(self) -> float:
        return self.rollout + self.update + self.evaluation


def estimate(plan: Plan, gpu: GpuKind = H200, assumed: Assumptions | None = None, together: int = 1) -> GpuHours:
    """Estimate the GPU-hours of the whole sweep, trials and combined runs included; a search counts by its budget.

    Args:
        together: runs whose responses an engine generates in one batch; 1 is one run's batch at a time.
    """
    assumed = assumed or Assumptions()
    spec = plan.spec
    evaluation = 0.0
    for i, (suite, responses) in enumerate(
        zip(spec.evaluation.suites, plan.evaluation_responses_by_suite, strict=True)
    ):
        turns, prompt = _turns_and_prompt(plan, f"evaluation.suites[{i}]", assumed, suite.task)
        length = (suite.max_response_tokens or spec.training.max_response_tokens) * assumed.response_share
        sharing, width = suite.samples if turns == 1 else 1, suite.prompts * suite.samples
        evaluation += generation_seconds(
            plan, gpu, assumed, responses * turns, prompt, length, width * together, sharing, _overlays(plan, together)
        )
    update = sum(
        update_seconds(plan, run.selection, gpu, assumed) * plan.expected_steps(run) / spec.training.steps
        for run in plan.trained
    )
    rollout = rollout_seconds(plan, plan.training_responses, gpu, assumed, together)
    return GpuHours(rollout / 3600, update / 3600, evaluation / 3600)


def rollout_seconds(plan: Plan, responses: float, gpu: GpuKind, assumed: Assumptions, together: int = 1) -> float:
    """Return the seconds of one device that generates so many training responses (episodes, where the task has
    turns)."""
    training = plan.spec.training
    turns, prompt = _turns_and_prompt(plan, "task", assumed)
    width = training.prompts_per_step * training.group_size * together
    length = training.max_response_tokens * assumed.response_share
    # Responses to one question share its prompt; every turn of an episode has its own.
    sharing = training.group_size if turns == 1 else 1
    return generation_seconds(
        plan, gpu, assumed, responses * turns, prompt, length, width, sharing, _overlays(plan, together)
    )


def update_seconds(plan: Plan, selection: Selection, gpu: GpuKind, assumed: Assumptions) -> float:
    """Return the seconds of one device that makes all updates of one run."""
    training = plan.spec.training
    turns, prompt = _turns_and_prompt(plan, "task", assumed)
    length = training.max_response_tokens * assumed.response_share
    sharing = training.group_size if turns == 1 else 1
    algorithm = plan.spec.algorithm.build()
    # Old log-probabilities by the trainer: the first minibatch has them from its own forward pass.
    rollout = plan.spec.rollout
    dtypes = training.dtype, rollout.precision(training.dtype)
    decoupled = resolve(algorithm.rollout_correction, *dtypes, stale=rollout.staleness > 0) != "bypass"
    more = 1 - 1 / training.minibatches if decoupled else 0.0
    flops = update_flops(
        plan.architecture, selection, prompt + length / 2, algorithm.kl_coefficient > 0, training.epochs, more,
        checkpointing=_checkpoints(plan, selection, gpu)[0],
    )  # fmt: skip
    tokens = training.steps * step_tokens(plan, assumed) * (1 + prompt / sharing / length)
    return tokens * flops / (gpu.flops[training.dtype] * assumed.arithmetic)


def step_tokens(plan: Plan, assumed: Assumptions) -> float:
    """Return the tokens that one run generates in one step."""
    training = plan.spec.training
    turns, _ = _turns_and_prompt(plan, "task", assumed)
    episodes = training.prompts_per_step * training.group_size
    return episodes * turns * training.max_response_tokens * assumed.response_share


def generation_seconds(
    plan: Plan, gpu: GpuKind, assumed: Assumptions, responses: float, prompt: float, length: float, at_once: int,
    sharing: int, overlays: float = 0.0,
) -> float:  # fmt: skip
    """Return the seconds of one device that generates so many responses.

    Args:
        prompt, length: tokens of a prompt and of a response, on average.
        at_once: responses at a time, at most.
        sharing: responses that share a prompt's KV cache.
        overlays: bytes of weights read in every pass besides the base's.
    """
    shape, rollout = plan.architecture, plan.spec.rollout
    context = prompt + length / 2
    weights = forward_flops(shape, 0) / 2 * plan.element_bytes
    capacity = (gpu.memory * rollout.gpu_memory_utilization * rollout.tensor_parallel_size - weights) / (
        context * cache_bytes(plan)
    )
    batch = max(1, min(at_once, rollout.max_num_seqs, capacity))
    arithmetic, bandwidth = gpu.flops[plan.spec.training.dtype] * assumed.arithmetic, gpu.bandwidth * assumed.bandwidth
    read = weights + overlays + batch * context * cache_bytes(plan)
    one_pass = max(batch * forward_flops(shape, context) / arithmetic, read / bandwidth)
    prefill = responses / sharing * prompt * forward_flops(shape, prompt / 2) / arithmetic
    return responses * length / batch * one_pass + prefill


def cache_bytes(plan: Plan) -> int:
    """Return the bytes of one token's KV cache."""
    shape = plan.architecture
    return (
        2 * shape.layers * shape.kv_heads * shape.head_dim * cache_element_bytes(plan.spec.rollout, plan.element_bytes)
    )


def _overlays(plan: Plan, together: int) -> float:
    """Return the bytes in which the runs of one batch differ from the base; a run by itself replaces the base's
    weights."""
    if together == 1:
        return 0.0
    whole = next((plan.push_bytes(run.selection) for run in plan.runs if run.selection.trains_all), 0)
    layers = [plan.push_bytes(run.selection) for run in plan.runs if not run.selection.trains_all]
    return whole + (together - bool(whole)) * max(layers, default=0)


def forward_flops(shape: Architecture, context: float) -> float:
    """Return the FLOPs of one token through all blocks and the LM head."""
    return shape.layers * block_flops(shape, context) + 2 * shape.vocabulary * shape.hidden


def block_flops(shape: Architecture, context: float) -> float:
    """Return the FLOPs of one token through one block, on average over blocks: some may attend to a window of the
    context."""
    return 2 * shape.active_layer_parameters + 4 * shape.heads * shape.head_dim * shape.attended(context)


def update_flops(
    shape: Architecture, selection: Selection, context: float, reference: bool, epochs: int, old_logprobs: float = 0.0,
    checkpointing: bool = False,
) -> float:  # fmt: skip
    """Return the FLOPs of one token of a rollout batch, trained on `epochs` times.

    Below the first trained block: forward, once. From there on: forward and the activations' gradient; of what
    trains, the weights' gradient too. The reference is one more forward of the upper part, in every epoch;
    and so are old log-probabilities, once, for this share of the batch. With activation checkpointing the backward pass
    computes the upper blocks once more.
    """
    block, head = block_flops(shape, context), 2 * shape.vocabulary * shape.hidden
    if selection.trains_all:
        below, upper, trained = 0, shape.layers, shape.layers * 2 * shape.active_layer_parameters + head
    else:
        below = selection.first_block(shape.layers)
        upper, trained = shape.layers - below, 2 * count_active(selection, shape)
    suffix = upper * block + head
    again = upper * block if checkpointing else 0
    return below * block + old_logprobs * suffix + epochs * ((3 if reference else 2) * suffix + trained + again)


def micro_batch(plan: Plan, selection: Selection, gpu: GpuKind = H200) -> int:
    """Return the tokens of a trainer's micro batch, as the spec says or as the trainer will choose them.

    Args:
        gpu: the kind that trainers are on, where they are on GPUs; else this machine's memory counts.
    """
    return micro_batch_tokens(plan.spec.training, plan.architecture, selection, _part_of_gpu(plan, selection, gpu))


def _part_of_gpu(plan: Plan, selection: Selection, gpu: GpuKind) -> float:
    """Return the bytes of a trainer's part of its GPU; 0 on CPUs."""
    resources = plan.spec.resources
    needs = (resources.full_trainer if selection.trains_all else None) or resources.trainer
    return min(1.0, needs.gpus) * gpu.memory


def update_bytes(plan: Plan, selection: Selection, gpu: GpuKind = H200) -> int:
    """Return what an update keeps and computes with at most, of one micro batch or of one response that exceeds it.

    With `training.checkpointing: auto` the response counts as it is computed: checkpointed where it would not fit.
    """
    shape, on_gpu = plan.architecture, plan.spec.resources.on_gpu()
    checkpointing, tokens = _checkpoints(plan, selection, gpu)
    kernels = expected_kernels(plan.spec.training, shape, on_gpu)
    return activation_bytes(shape, selection, plan.element_bytes, tokens, on_gpu, checkpointing, kernels)


def _checkpoints(plan: Plan, selection: Selection, gpu: GpuKind) -> tuple[bool, int]:
    """Return whether updates may be checkpointed, and the tokens of a micro batch, or of one response that exceeds it,
    by which that is decided."""
    training = plan.spec.training
    prompt = math.ceil(plan.prompt_tokens.get("task", UNKNOWN_PROMPT_TOKENS))
    longest = min(plan.window, training.max_response_tokens + prompt)
    tokens = max(micro_batch(plan, selection, gpu), longest)
    return tokens > unchecked_tokens(training, plan.architecture, selection, _part_of_gpu(plan, selection, gpu)), tokens


def _turns_and_prompt(
    plan: Plan, section: str, assumed: Assumptions, task: TaskConfig | None = None
) -> tuple[float, float]:
    """Return the turns of a section's episodes, 1 where it has questions, and the tokens of a prompt.

    Args:
        task: of the section, where it has one of its own.
    """
    task = task or plan.spec.task
    if getattr(task, "multi_turn", False):
        return task.max_turns * assumed.turn_share, task.max_prompt_tokens / 2
    return 1, assumed.prompt_tokens or plan.prompt_tokens.get(section, UNKNOWN_PROMPT_TOKENS)
