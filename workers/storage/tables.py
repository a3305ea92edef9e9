"""The tables of a sweep: each column with its type, its unit and its meaning.

    steps.parquet                  a row per run and training step
    scores.parquet                 a row per evaluated response
    contribution.parquet           a row per selection
    contribution_by_suite.parquet  a row per selection, split and suite, and per group of suites
    contribution_by_base_success.parquet  a row per selection, split and class of prompts, with the report
    responses/                     a row per response that is kept, see `workers.storage.responses`
    dissection.parquet             a row per variant of a finished run (`layersweep dissect`)
    composition.parquet            a row per stack of finished runs (`layersweep compose`)
    probe.parquet                  a row per layer, part and seed (`layersweep probe`)

A new metric of a training step takes two places: where it is computed, and its line in STEPS. A name without a line is
refused where the row arrives.
"""

import numpy as np
import pandas as pd

from .table_schema import COUNT, FLAG, INDEX, LIST, NUMBER, REASON, TEXT, Column, TableSchema

PHASES = ("rollout", "reward", "update", "sync", "wait")
"""The phases of a training step, one after the other; `<phase>_seconds` are columns of STEPS."""

REWARD = Column("reward.", NUMBER, "one of several rewards, or a number that a reward function gave beside its score",
                "reward")  # fmt: skip
"""Named numbers of a user's reward functions: of a response in SCORES, their mean over the batch in STEPS."""


def _with_interval(name: str, meaning: str, unit: str = "", required: bool = False) -> tuple[Column, Column, Column]:
    """Make the columns NAME, NAME_low and NAME_high: an estimate and the ends of its 95 % interval."""
    return (
        Column(name, NUMBER, meaning, unit, required),
        Column(f"{name}_low", NUMBER, "lower end of its 95 % interval", unit),
        Column(f"{name}_high", NUMBER, "upper end", unit),
    )


def model_layers_from_depth(layer: pd.Series, depth: pd.Series) -> int | None:
    """Return the number of layers L behind depth = layer / (L - 1), for tables that do not store L; None without a
    depth."""
    layer, depth = (values.to_numpy(float, na_value=np.nan) for values in (layer, depth))
    known = np.isfinite(layer) & np.isfinite(depth) & (depth > 0)
    return round(float(np.median(layer[known] / depth[known]))) + 1 if known.any() else None


def _zeros_to_nulls(steps: pd.DataFrame, version: int) -> pd.DataFrame:
    """Make the zeros that version 2 wrote for what was not measured null: none of these is exactly 0 where it is
    measured, but for a KL before the first update."""
    if version < 3:
        for name in ("kl", "entropy", "logprob_mismatch"):
            steps[name] = steps[name].where(steps[name] != 0.0)
    return steps


def _with_model_layers(contribution: pd.DataFrame, version: int) -> pd.DataFrame:
    """Fill the number of the model's layers, which version 1 did not write."""
    if version < 2:
        layers = model_layers_from_depth(contribution["layer"], contribution["depth"])
        contribution["model_layers"] = contribution["model_layers"].fillna(layers)
    return contribution


STEPS = TableSchema("steps", (
    Column("selection", TEXT, "what the run trains", required=True),
    Column("seed", INDEX, "RL seed of the run", required=True),
    Column("step", INDEX, "training step, from 0", required=True),
    Column("reward_mean", NUMBER, "mean reward of the batch", "reward"),
    Column("reward_std", NUMBER, "standard deviation of the batch's rewards", "reward"),
    Column("no_signal_fraction", NUMBER, "share of groups without any advantage, as a rule those scored all alike"),
    Column("loss", NUMBER, "policy-gradient loss, mean over optimizer steps"),
    Column("kl", NUMBER, "KL divergence from the base model (k3); without a KL term before the update, on a sample of "
           "every eighth and of the last step", "nats per token"),
    Column("entropy", NUMBER, "entropy of the policy, over the tokens trained on", "nats per token"),
    Column("clip_fraction", NUMBER, "share of the tokens trained on whose ratio left the clip range"),
    Column("grad_norm", NUMBER, "L2 norm of the gradient before clipping, mean over optimizer steps"),
    Column("update_norm", NUMBER, "L2 distance of the trained weights from the base model"),
    Column("logprob_mismatch", NUMBER, "mean |difference| of engine's and trainer's log-probabilities, over the tokens "
           "trained on; with a staleness above 0 the updates in between are in it", "nats"),
    Column("response_tokens", NUMBER, "mean response length", "tokens"),
    Column("truncated_fraction", NUMBER, "share of responses cut at the token limit"),
    Column("format_fraction", NUMBER, "share of responses with a readable answer"),
    Column("learning_rate", NUMBER, "learning rate of the step, of its last optimizer step"),
    Column("tokens", COUNT, "response tokens of the batch", "tokens"),
    Column("pushed_bytes", COUNT, "weights sent from trainer to engine", "bytes"),
    Column("rollout_seconds", NUMBER, "wall time of generating the batch", "s"),
    Column("reward_seconds", NUMBER, "wall time of scoring it", "s"),
    Column("update_seconds", NUMBER, "wall time of the trainer's update", "s"),
    Column("sync_seconds", NUMBER, "wall time of bringing the weights to the engine", "s"),
    Column("wait_seconds", NUMBER, "wall time spent waiting for other runs", "s"),
    Column("generate_cpu_seconds", NUMBER, "CPU time of the engine", "s"),
    Column("reward_cpu_seconds", NUMBER, "CPU time of scoring", "s"),
    Column("update_cpu_seconds", NUMBER, "CPU time of the trainer's update", "s"),
    Column("push_cpu_seconds", NUMBER, "CPU time of the engine taking the weights", "s"),
    Column("checkpoint_cpu_seconds", NUMBER, "CPU time of checkpoints since the step before", "s"),
    Column("driver_cpu_seconds", NUMBER, "CPU time of the driver since any run's last step", "s"),
    Column("success_rate", NUMBER, "share of episodes that reached their goal (environments)"),
    Column("episode_length", NUMBER, "mean number of turns (environments)", "turns"),
    Column("invalid_action_rate", NUMBER, "share of turns without a valid action (environments)"),
    Column("step_groups_larger_than_one", NUMBER, "share of step groups with more than one row (GiGPO)"),
    Column("lost_episodes", COUNT, "environments that failed, retried once", "episodes"),
    Column("given_up_episodes", COUNT, "episodes whose environment failed twice", "episodes"),
    Column("cut_observations", COUNT, "observations cut at their limit", "observations"),
    Column("unjudged_fraction", NUMBER, "share of responses without a verdict (late, an exception), which are wrong"),
    Column("overlong_prompts", COUNT, "prompts too long for the model's window, replaced by others", "prompts"),
    Column("gradient_agreement", NUMBER, "cosine between the gradients of even and of odd prompts (first step)"),
    Column("optimizer_steps", COUNT, "optimizer steps; a minibatch without signal takes none", "steps"),
    Column("corrected_fraction", NUMBER, "share of tokens whose importance weight against the engine was bounded"),
    Column("unusable_tokens", COUNT, "tokens without a log-probability by the engine, not trained on", "tokens"),
    Column("discarded_tokens", COUNT, "response tokens of prompts that dynamic sampling replaced", "tokens"),
    Column("staleness", COUNT, "training steps between the weights that generated the batch and those updated on it; "
           "all steps so far where the base generated it", "steps"),
    Column("rollout_kl", NUMBER, "KL divergence between the policy that generated the batch and the one updated on it "
           "(k3), over the tokens trained on: rounding, and what staleness adds", "nats per token"),
), further=REWARD, upgrade=_zeros_to_nulls)  # fmt: skip

SCORES = TableSchema("scores", (
    Column("selection", TEXT, "what the run trains", required=True),
    Column("seed", INDEX, "RL seed of the run", required=True),
    Column("step", INDEX, "training steps done when scored", required=True),
    Column("suite", TEXT, "evaluation suite; NAME@greedy holds the greedy answers beside the score", required=True),
    Column("split", TEXT, "selection or final", required=True),
    Column("prompt", TEXT, "identifier of the prompt, the same for all runs", required=True),
    Column("sample", INDEX, "number of the response to this prompt, from 0", required=True),
    Column("score", NUMBER, "score of the response", "reward", required=True),
    Column("response_tokens", COUNT, "length of the response, or of an episode's responses", "tokens"),
    Column("truncated", FLAG, "cut at the token limit, or an episode at the turn limit"),
    Column("format_ok", FLAG, "an answer could be read from it, right or wrong"),
    Column("category", TEXT, "category of the prompt (environments)"),
    Column("losses", COUNT, "times that the environment failed; 2: given up"),
    Column("unjudged", FLAG, "it got no verdict (late, an exception), and counts as wrong"),
    Column("counts", FLAG, "whether the suite is part of the score S; null is true"),
    Column("answer", TEXT, "final answer as the task read it; equal answers are equal texts"),
), further=REWARD)  # fmt: skip

CONTRIBUTION = TableSchema("contribution", (
    Column("sweep", TEXT, "name of the sweep"),
    Column("model", TEXT, "the base model"),
    Column("algorithm", TEXT, "RL algorithm"),
    Column("task", TEXT, "task that is trained on"),
    Column("selection", TEXT, "what was trained", required=True),
    Column("kind", TEXT, "base, full, layer, layers (several, or boosted), part (of layers or outside), control, or "
           "trial (of a learning rate)", required=True),
    Column("layer", COUNT, "index of a single layer, or of the one that a part or a control is of, from 0"),
    Column("depth", NUMBER, "layer / (model_layers - 1): 0 the first layer, 1 the last"),
    Column("seeds", COUNT, "training runs of the selection"),
    *_with_interval("score", "mean over the suites that count of the mean over prompts, on the selection split",
                    "reward", required=True),
    *_with_interval("contribution", "C = (score - base) / (full - base)"),
    Column("rank", COUNT, "rank among single layers, 1 the best"),
    Column("response_tokens", NUMBER, "mean response length", "tokens"),
    Column("truncated_fraction", NUMBER, "share of responses cut at the token limit"),
    Column("format_fraction", NUMBER, "share of responses with a readable answer"),
    Column("trainable_parameters", COUNT, "parameters that were trained"),
    Column("update_norm", NUMBER, "L2 norm of the weights' change, mean over seeds"),
    Column("learning_rate", NUMBER, "learning rate of its runs"),
    Column("steps", COUNT, "training steps done, the fewest over seeds"),
    Column("prompts", COUNT, "prompts that it was scored on"),
    Column("generated_tokens", COUNT, "response tokens generated in training, over seeds", "tokens"),
    Column("seconds", NUMBER, "wall time of its runs, over seeds", "s"),
    Column("status", TEXT, "completed, running, failed or pruned: over seeds the worst", required=True),
    Column("reason", REASON, "why it failed or was pruned, or why C is null"),
    Column("layers", LIST, "indices of all layers that were trained or boosted"),
    Column("modules", TEXT, "what of these layers was trained: attention, mlp, norms or an expression; null is all"),
    Column("model_layers", COUNT, "layers of the model"),
    Column("contribution_sd", NUMBER, "standard error of C against the mean layer: the noise that can change ranks"),
    Column("contribution_untruncated", NUMBER, "C on the responses that were not truncated"),
    Column("contribution_reason", REASON, "why C is null"),
    Column("contribution_note", REASON, "what to know about C"),
    Column("imprecise", FLAG, "the full run's gain is below 4 standard errors"),
    Column("p_best", NUMBER, "probability of being the best layer"),
    Column("p_top", NUMBER, "probability of being among the best three layers"),
    Column("tied_with_best", FLAG, "cannot be told apart from the best layer"),
    *_with_interval("final_score", "score on the final split", "reward"),
    *_with_interval("final_contribution", "C on the final split"),
    Column("learning_rate_policy", TEXT, "how the learning rates were found"),
    Column("unjudged_fraction", NUMBER, "share of responses whose answer got no verdict in time, and counts as wrong"),
    Column("optimizer_steps", COUNT, "optimizer steps taken, the fewest over seeds", "steps"),
    Column("lora_rank", COUNT, "rank of the adapters that were trained; null where weights themselves were"),
    Column("lora_alpha", NUMBER, "alpha of the adapters; their product counts alpha / rank times"),
    Column("control", TEXT, "type of a control: random_reward, constant_reward, random_direction, supervised or "
           "learning_rate"),
    Column("control_of", TEXT, "selection that it is a control of"),
), upgrade=_with_model_layers)  # fmt: skip

BY_SUITE = TableSchema("contribution_by_suite", (
    Column("sweep", TEXT, "name of the sweep"),
    Column("selection", TEXT, "what was trained", required=True),
    Column("kind", TEXT, "base, full, layer or layers", required=True),
    Column("layer", COUNT, "index of a single layer, from 0"),
    Column("split", TEXT, "selection or final", required=True),
    Column("suite", TEXT, "evaluation suite; @in_domain: the mean over those that count, which is S; @out_of_domain: "
           "over the others; @all: over all", required=True),
    Column("counts", FLAG, "whether the suite is part of S; null for groups of suites"),
    Column("step", COUNT, "training steps done when scored"),
    Column("seeds", COUNT, "training runs of the selection"),
    Column("prompts", COUNT, "prompts that it was scored on"),
    *_with_interval("score", "mean over prompts, then over the group's suites", "reward"),
    *_with_interval("gain", "score - base; what is below 0 was forgotten", "reward"),
    *_with_interval("contribution", "C = gain / gain of the full run, on this suite"),
    Column("contribution_reason", REASON, "why C is null"),
    Column("contribution_note", REASON, "what to know about C"),
    Column("imprecise", FLAG, "the full run's gain is below 4 standard errors"),
    Column("response_tokens", NUMBER, "mean response length", "tokens"),
    Column("truncated_fraction", NUMBER, "share of responses cut at the token limit"),
    Column("format_fraction", NUMBER, "share of responses with a readable answer"),
))  # fmt: skip

BY_BASE_SUCCESS = TableSchema("contribution_by_base_success", (
    Column("sweep", TEXT, "name of the sweep"),
    Column("selection", TEXT, "what was trained", required=True),
    Column("kind", TEXT, "as in contribution.parquet", required=True),
    Column("layer", COUNT, "index of a single layer, from 0"),
    Column("split", TEXT, "selection or final", required=True),
    Column("base_success", TEXT, "how often the base solves the prompt: never, sometimes, always, each of its samples "
           "sorted by the others", required=True),
    Column("share", NUMBER, "share of the prompts that are of this class, a mean over the suites that count"),
    Column("suites", COUNT, "suites with such prompts"),
    Column("step", COUNT, "training steps done when scored"),
    Column("seeds", COUNT, "training runs of the selection"),
    *_with_interval("score", "mean over these prompts, then over suites that have any", "reward"),
    *_with_interval("gain", "score - base", "reward"),
    Column("gain_part", NUMBER, "what these prompts add to the gain over all; the classes' sum is the gain", "reward"),
    *_with_interval("contribution", "C = gain / gain of the full run, on these prompts"),
    Column("contribution_reason", REASON, "why C is null"),
    Column("contribution_note", REASON, "what to know about C"),
    Column("imprecise", FLAG, "the full run's gain is below 4 standard errors"),
))  # fmt: skip

RESPONSES = TableSchema("responses", (
    Column("selection", TEXT, "what the run trains", required=True),
    Column("seed", INDEX, "RL seed of the run", required=True),
    Column("split", TEXT, "train, selection or final", required=True),
    Column("suite", TEXT, "evaluation suite; NAME@greedy holds the greedy answers; null in training"),
    Column("prompt", TEXT, "identifier of the prompt, the same for all runs", required=True),
    Column("sample", INDEX, "number of the response to this prompt, from 0", required=True),
    Column("question", TEXT, "text of the prompt; of a chat its messages, of an environment the start state's name"),
    Column("response", TEXT, "text of the response; of an environment the turns of the episode"),
    Column("score", NUMBER, "score of the response", "reward"),
    Column("answer", TEXT, "final answer as the task read it"),
    Column("response_tokens", COUNT, "length of the response", "tokens"),
    Column("truncated", FLAG, "cut at the token limit"),
    Column("format_ok", FLAG, "an answer could be read from it, right or wrong"),
))  # fmt: skip

PROMPTS = TableSchema("prompts", (
    Column("prompt", TEXT, "identifier", required=True),
    Column("text", TEXT, "the prompt where it is plain text"),
    Column("messages", TEXT, "the prompt where it is a chat, as JSON"),
    Column("truth", TEXT, "what a response is scored by, as JSON"),
    Column("info", TEXT, "whatever else the task keeps with it, as JSON"),
))  # fmt: skip

_SCORED = (
    Column("seeds", COUNT, "training runs that it was made from"),
    Column("prompts", COUNT, "prompts that it was scored on"),
    *_with_interval("score", "mean over suites of the mean over prompts", "reward"),
    *_with_interval("contribution", "C = (score - base) / (full - base)"),
    Column("contribution_reason", REASON, "why C is null"),
)
_CHANGE = (
    Column("change_norm", NUMBER, "L2 norm of its change of the base's weights, mean over seeds"),
    Column("changed_parameters", NUMBER, "entries in which it differs from the base, mean over seeds"),
)

PROBE = TableSchema("probe", (
    Column("sweep", TEXT, "name of the sweep"),
    Column("selection", TEXT, "the layer, its part, or another selection of the sweep, as a run over it is called",
           required=True),
    Column("layer", COUNT, "index of the layer, from 0; null of several, and of what is outside of layers",
           required=True),
    Column("modules", TEXT, "part of the layer: attention, mlp, norms, or an expression; null is all of it"),
    Column("lora_rank", COUNT, "rank of the adapters, of which nothing but the screening is known; null without them"),
    Column("seed", INDEX, "seed whose first rollout batch it was measured on", required=True),
    Column("parameters", COUNT, "number of its parameters"),
    Column("gradient_norm", NUMBER, "L2 norm of the loss's gradient at the base, the mean of both halves'"),
    Column("gradient_agreement", NUMBER, "cosine between the gradients of even and of odd prompts"),
    Column("first_order_gain", NUMBER, "fall of the loss of one half of the prompts at AdamW's first step on the other "
           "half, to first order, for a learning rate of 1"),
    Column("fisher_trace", NUMBER, "trace of its block of the policy's Fisher information, E |grad log p(response)|^2"),
    Column("skip_loss", NUMBER, "rise of the negative log-likelihood of the base's responses when it adds nothing to "
           "the residual stream; null of norms", "nats"),
    Column("screened_gain", NUMBER, "score over the base's after a short training on this one batch (`--screen`); null "
           "of what was not trained, and where the batch has no signal", "reward"),
    Column("screened_gain_low", NUMBER, "lower end of its 95 % interval, over prompts", "reward"),
    Column("screened_gain_high", NUMBER, "upper end", "reward"),
    Column("screened_steps", COUNT, "optimizer steps of that training", "steps"),
    Column("screened_prompts", COUNT, "prompts that it was scored on"),
))  # fmt: skip

DISSECTION = TableSchema("dissection", (
    Column("selection", TEXT, "the run that was taken apart", required=True),
    Column("variant", TEXT, "name of the weights that were scored", required=True),
    Column("change", TEXT, "what was kept of the run's change: whole, part, rank, largest, scaled, only (one layer), "
           "without (one layer), random (of the same norm)", required=True),
    Column("part", TEXT, "of `part`: attention, mlp or norms"),
    Column("amount", NUMBER, "rank, share of entries, factor, or index of the layer"),
    *_SCORED,
    *_with_interval("kept", "share of the run's own gain: (score - base) / (run - base)"),
    Column("kept_reason", REASON, "why it is null"),
    *_CHANGE,
))  # fmt: skip

COMPOSITION = TableSchema("composition", (
    Column("stack", TEXT, "name of the weights that were scored", required=True),
    Column("rule", TEXT, "how its members were found: given, best, pair, greedy, or trained together", required=True),
    Column("members", LIST, "selections whose changes were added up"),
    Column("size", COUNT, "number of members"),
    Column("strength", NUMBER, "factor of each member's change"),
    Column("split", TEXT, "whose prompts it was scored on: final where the selection split chose it", required=True),
    *_SCORED,
    *_CHANGE,
))  # fmt: skip
