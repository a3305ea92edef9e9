"""The three tables of a sweep: each column with its type, its unit and its meaning.

    steps.parquet         a row per run and training step
    scores.parquet        a row per evaluated response
    contribution.parquet  a row per selection

A new metric of a training step takes two places: where it is computed, and its line in STEPS. A name without a line is
refused where the row arrives. Files carry the schema's version and, with each column, its unit and meaning (parquet
metadata). Files of an older version open too: columns that they lack are null.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .files import read_bytes

VERSION = 2
"""Version of the schema, raised when a column changes its name or meaning, not when one is added. 1 wrote none."""
VERSION_KEY = b"layersweep.schema_version"

TEXT, REASON, NUMBER, COUNT, INDEX, FLAG, LIST = "str", "string", "float64", "Int64", "int64", "boolean", "object"
"""Types of columns, as pandas names them: all but INDEX can be null."""


class UnknownColumn(ValueError):
    """A name that a table has no column for."""


@dataclass(frozen=True)
class Column:
    """Column of a table."""

    name: str
    type: str
    meaning: str
    unit: str = ""
    """Empty for shares, names and other plain numbers."""
    required: bool = False
    """Whether a file without it is not this table."""


@dataclass(frozen=True)
class TableSchema:
    """The columns of one parquet file, in order."""

    name: str
    columns: tuple[Column, ...]

    @cached_property
    def types(self) -> dict[str, str]:
        """Type by column, as pandas names it, in the order of the file."""
        return {column.name: column.type for column in self.columns}

    def check(self, names: Iterable[str]) -> None:
        """Refuse names that the table has no column for.

        Raises:
            UnknownColumn: with all such names.
        """
        if unknown := [name for name in names if name not in self.types]:
            raise UnknownColumn(
                f"{self.name}.parquet has no column {', '.join(unknown)}; a new one needs a line in "
                "workers/storage/tables.py"
            )

    def frame(self, rows: pd.DataFrame | list[dict[str, Any]]) -> pd.DataFrame:
        """Rows as the table has them: all columns, in order and typed; what rows lack is null.

        Raises:
            UnknownColumn: rows have a name that the table has no column for.
            ValueError: a value that its column's type cannot hold.
        """
        frame = pd.DataFrame(rows)
        self.check(frame.columns)
        frame = frame.reindex(columns=list(self.types))
        for name, wanted in self.types.items():
            if frame[name].dtype != wanted:
                try:
                    frame[name] = frame[name].astype(wanted)
                except (ValueError, TypeError, OverflowError) as error:
                    raise ValueError(f"column {name}: {error}") from error
        return frame

    def write(self, frame: pd.DataFrame, file: BinaryIO) -> None:
        """Write a frame made by `frame` as parquet, with version, units and meanings in its metadata."""
        table = pa.Table.from_pandas(frame, preserve_index=False)
        described = {column.name: {"meaning": column.meaning, "unit": column.unit} for column in self.columns}
        fields = [field.with_metadata(described[field.name]) for field in table.schema]
        metadata = table.schema.metadata | {VERSION_KEY: str(VERSION).encode()}
        pq.write_table(pa.Table.from_arrays(table.columns, schema=pa.schema(fields, metadata)), file)

    def read(self, target: str) -> pd.DataFrame:
        """Read a file at a path or URI.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
            ValueError: as `parse`.
        """
        if (content := read_bytes(target)) is None:
            raise FileNotFoundError(f"{target}: no such file")
        return self.parse(content)

    def parse(self, content: bytes) -> pd.DataFrame:
        """A file of this or an older version; columns that are not the table's are left out.

        Raises:
            ValueError: it is not parquet, not this table, or of a newer version.
        """
        try:
            table = pq.read_table(BytesIO(content))
            found = table.to_pandas(ignore_metadata=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"cannot be read as parquet: {error}") from error
        version = int((table.schema.metadata or {}).get(VERSION_KEY, 1))
        if version > VERSION:
            raise ValueError(f"written by a newer layersweep: schema version {version}, this one reads up to {VERSION}")
        if absent := [column.name for column in self.columns if column.required and column.name not in found]:
            raise ValueError(f"not a {self.name} table of layersweep: it lacks {', '.join(absent)}")
        frame = self.frame(found[[name for name in self.types if name in found]])
        for column in self.columns:
            if column.required and column.type == TEXT and frame[column.name].isna().any():
                raise ValueError(f"column {column.name}: a row has none")
        if self is CONTRIBUTION and version < 2:
            frame["model_layers"] = frame["model_layers"].fillna(
                model_layers_from_depth(frame["layer"], frame["depth"])
            )
        return frame


def model_layers_from_depth(layer: pd.Series, depth: pd.Series) -> int | None:
    """The number of layers L behind depth = layer / (L - 1), for tables that do not store L; None without a depth."""
    layer, depth = (values.to_numpy(float, na_value=np.nan) for values in (layer, depth))
    known = np.isfinite(layer) & np.isfinite(depth) & (depth > 0)
    return round(float(np.median(layer[known] / depth[known]))) + 1 if known.any() else None


PHASES = ("rollout", "reward", "update", "sync", "wait")
"""The phases of a training step, one after the other; `<phase>_seconds` are columns of STEPS."""

STEPS = TableSchema("steps", (
    Column("selection", TEXT, "what the run trains", required=True),
    Column("seed", INDEX, "RL seed of the run", required=True),
    Column("step", INDEX, "training step, from 0", required=True),
    Column("reward_mean", NUMBER, "mean reward of the batch", "reward"),
    Column("reward_std", NUMBER, "standard deviation of the batch's rewards", "reward"),
    Column("no_signal_fraction", NUMBER, "share of groups without any advantage, as a rule those scored all alike"),
    Column("loss", NUMBER, "policy-gradient loss, mean over optimizer steps"),
    Column("kl", NUMBER, "KL divergence from the base model (k3)", "nats per token"),
    Column("entropy", NUMBER, "entropy of the policy", "nats per token"),
    Column("clip_fraction", NUMBER, "share of tokens whose ratio left the clip range"),
    Column("grad_norm", NUMBER, "L2 norm of the gradient before clipping, mean over optimizer steps"),
    Column("update_norm", NUMBER, "L2 distance of the trained weights from the base model"),
    Column("logprob_mismatch", NUMBER, "mean |difference| of engine's and trainer's log-probabilities", "nats"),
    Column("response_tokens", NUMBER, "mean response length", "tokens"),
    Column("truncated_fraction", NUMBER, "share of responses cut at the token limit"),
    Column("format_fraction", NUMBER, "share of responses with a readable answer"),
    Column("learning_rate", NUMBER, "learning rate of the step"),
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
    Column("unjudged_fraction", NUMBER, "share of responses whose answer got no verdict in time, and counts as wrong"),
    Column("gradient_agreement", NUMBER, "cosine between the gradients of even and of odd prompts (first step)"),
    Column("optimizer_steps", COUNT, "optimizer steps; a minibatch without signal takes none", "steps"),
    Column("corrected_fraction", NUMBER, "share of tokens whose importance weight against the engine was bounded"),
    Column("unusable_tokens", COUNT, "tokens without a log-probability by the engine, not trained on", "tokens"),
    Column("discarded_tokens", COUNT, "response tokens of prompts that dynamic sampling replaced", "tokens"),
))  # fmt: skip

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
))  # fmt: skip

CONTRIBUTION = TableSchema("contribution", (
    Column("sweep", TEXT, "name of the sweep"),
    Column("model", TEXT, "the base model"),
    Column("algorithm", TEXT, "RL algorithm"),
    Column("task", TEXT, "task that is trained on"),
    Column("selection", TEXT, "what was trained", required=True),
    Column("kind", TEXT, "base, full, layer, layers (several or boosted) or trial (of a learning rate)", required=True),
    Column("layer", COUNT, "index of a single layer, from 0"),
    Column("depth", NUMBER, "layer / (model_layers - 1): 0 the first layer, 1 the last"),
    Column("seeds", COUNT, "training runs of the selection"),
    Column("score", NUMBER, "mean over suites of the mean over prompts, on the selection split", "reward", True),
    Column("score_low", NUMBER, "lower end of its 95 % interval", "reward"),
    Column("score_high", NUMBER, "upper end", "reward"),
    Column("contribution", NUMBER, "C = (score - base) / (full - base)"),
    Column("contribution_low", NUMBER, "lower end of its 95 % interval"),
    Column("contribution_high", NUMBER, "upper end"),
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
    Column("model_layers", COUNT, "layers of the model"),
    Column("contribution_sd", NUMBER, "standard error of C against the mean layer: the noise that can change ranks"),
    Column("contribution_untruncated", NUMBER, "C on the responses that were not truncated"),
    Column("contribution_reason", REASON, "why C is null"),
    Column("contribution_note", REASON, "what to know about C"),
    Column("imprecise", FLAG, "the full run's gain is below 4 standard errors"),
    Column("p_best", NUMBER, "probability of being the best layer"),
    Column("p_top", NUMBER, "probability of being among the best three layers"),
    Column("tied_with_best", FLAG, "cannot be told apart from the best layer"),
    Column("final_score", NUMBER, "score on the final split", "reward"),
    Column("final_score_low", NUMBER, "lower end of its 95 % interval", "reward"),
    Column("final_score_high", NUMBER, "upper end", "reward"),
    Column("final_contribution", NUMBER, "C on the final split"),
    Column("final_contribution_low", NUMBER, "lower end of its 95 % interval"),
    Column("final_contribution_high", NUMBER, "upper end"),
    Column("learning_rate_policy", TEXT, "how the learning rates were found"),
    Column("optimizer_steps", COUNT, "optimizer steps taken, the fewest over seeds", "steps"),
))  # fmt: skip
