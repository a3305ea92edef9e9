"""`layersweep compose`: stacks of separately trained runs, their changes added up without training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd
from rich.table import Table

from layersweep.orchestrator.execution.variant_scoring import VariantScorer, score_variants
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.planning.selections import trained_weights
from layersweep.orchestrator.report import write_report
from layersweep.orchestrator.report.format import interval_text, number_text, wide_console
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.statistics.variants import variant_scores
from layersweep.policies.selection import Selection
from layersweep.policies.variant import RunChange, Variant
from layersweep.workers.storage.tables import COMPOSITION

from .finished_sweep import FinishedSweep, open_sweep


@dataclass(frozen=True)
class Wanted:
    """Stacks to be scored."""

    given: tuple[tuple[str, ...], ...] = ()
    """Stacks by their members' names."""
    best: int = 0
    """Stacks of the best 1, 2, 3, ... this many runs."""
    pairs: int = 0
    """All pairs of so many of the best runs."""
    greedy: int = 0
    """Members of a stack that grows by the run that raises its score on the selection split most."""
    strengths: tuple[float, ...] = (1.0,)
    """Factors of every member's change; each stack is scored with each of them."""


@dataclass(frozen=True)
class Stack:
    """Runs whose changes are added up."""

    members: tuple[str, ...]
    strength: float
    rule: str
    split: str

    @property
    def name(self) -> str:
        """Name in the tables: the members in order, single layers by their number, and a strength other than 1."""
        labels = sorted(member.removeprefix("layer-") for member in self.members)
        return f"stack-{'-'.join(labels)}" + (f"-x{self.strength:g}" if self.strength != 1 else "")

    @property
    def variant(self) -> Variant:
        return Variant(self.name, tuple(RunChange(member, self.strength) for member in sorted(self.members)))


def member_name(member: str) -> str:
    """Name the run behind a stack's member: of a number the layer, of anything else itself."""
    return f"layer-{int(member):02d}" if member.isdigit() else member


def compose(sweep: str, wanted: Wanted, overrides: Mapping[str, Any] | None = None, address: str | None = None) -> str:
    """Score stacks, write composition.parquet and the report; returns the table's path.

    What the selection split's scores chose, the best and the greedy stacks, is scored on the final split.

    Args:
        sweep: its folder or URI.
        overrides: values that replace those of its spec: where and how fast, such as `resources.engines`.
        address: of a running Ray cluster.

    Raises:
        SpecError: no such sweep or run, or nothing to stack.
        VariantsFailed: some could not be scored; called again, it goes on.
    """
    finished = open_sweep(sweep, overrides)
    _check(finished, wanted)

    async def work(scorer: VariantScorer, plan: Plan) -> tuple[list[Stack], pd.DataFrame]:
        stacks = _planned(finished, plan, wanted)
        for strength in wanted.strengths if wanted.greedy else ():
            stacks += await _greedy(scorer, plan, finished, wanted.greedy, strength)
        scores = None
        for split in ("selection", "final"):
            variants = [stack.variant for stack in stacks if stack.split == split]
            scores = await scorer.score(variants, finished.spec.seeds, split)
        return stacks, scores

    stacks, scores = score_variants(finished.spec, work, address)
    rows = _together(finished, composition_table(finished, stacks, scores))
    target = finished.write(COMPOSITION, rows, ["stack", "rule", "split"])
    _show(rows, fewer_than_wanted(wanted, stacks))
    write_report(finished.folder)
    return target


def composition_table(finished: FinishedSweep, stacks: Sequence[Stack], scores: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of composition.parquet.

    Args:
        scores: the content of scores.parquet, of base, runs and variants.
    """
    rows, seed_sd = [], finished.spec.evaluation.seed_sd
    for split in ("selection", "final"):
        own = [stack for stack in stacks if stack.split == split]
        columns = {
            "stack": [stack.name for stack in own], "variant": [stack.name for stack in own],
            "rule": [stack.rule for stack in own], "members": [list(stack.members) for stack in own],
            "size": [len(stack.members) for stack in own], "strength": [stack.strength for stack in own],
        }  # fmt: skip
        if own:
            rows.append(
                variant_scores(scores, finished.table, pd.DataFrame(columns), split, seed_sd).assign(split=split)
            )
    table = pd.concat(rows, ignore_index=True)
    facts = finished.change_facts(list(table["variant"].unique()))
    return table.join(facts, on="variant").drop(columns="variant").drop_duplicates(["stack", "rule", "split"])


def _together(finished: FinishedSweep, rows: pd.DataFrame) -> pd.DataFrame:
    """Add the sweep's own runs over several layers, which trained together, on both splits."""
    names = {f"layer-{k:02d}" for k in range(finished.layers)}
    own = finished.table[(finished.table["kind"] == "layers") & finished.table["selection"].isin(finished.selections)]
    found = []
    for row in own.to_dict("records"):
        selection = finished.selections[row["selection"]]
        members = [f"layer-{k:02d}" for k in selection.layers]
        if selection.trains_all or not names.issuperset(members):
            continue
        for split, prefix in (("selection", ""), ("final", "final_")):
            scored = {
                name: row[prefix + name]
                for name in (
                    "score",
                    "score_low",
                    "score_high",
                    "contribution",
                    "contribution_low",
                    "contribution_high",
                )
            }
            facts = {"stack": row["selection"], "rule": "trained together", "members": members, "size": len(members)}
            found.append(facts | scored | {"split": split, "seeds": row["seeds"], "change_norm": row["update_norm"]})
    return pd.concat([rows, pd.DataFrame(found).dropna(subset=["score"])]) if found else rows


def _check(finished: FinishedSweep, wanted: Wanted) -> None:
    if not (wanted.given or wanted.best or wanted.pairs or wanted.greedy):
        raise SpecError(
            ["compose: name stacks such as 1+5 or layer-01+layer-05-mlp, or give --best, --pairs, --greedy"]
        )
    for members in wanted.given:
        if unknown := [name for name in members if name not in finished.selections]:
            known = ", ".join(finished.selections)
            raise SpecError([f"{unknown[0]}: no completed run of {finished.folder}; there are {known}"])
        if len(set(members)) < len(members):
            raise SpecError([f"{'+'.join(members)}: names a run twice"])
    if (wanted.best or wanted.greedy) and not any(suite.final_prompts for suite in finished.spec.evaluation.suites):
        raise SpecError([
            "evaluation.suites: best and greedy stacks are chosen on the selection split and scored on the final one, "
            "and this sweep has no final_prompts; name stacks yourself, or use --pairs"
        ])  # fmt: skip


def _planned(finished: FinishedSweep, plan: Plan, wanted: Wanted) -> list[Stack]:
    """Return the stacks that are known before anything is scored."""
    candidates = _candidates(finished, plan)
    stacks = []
    for strength in wanted.strengths:
        stacks += [Stack(members, strength, "given", "selection") for members in wanted.given]
        pairs = combinations(candidates[: wanted.pairs], 2)
        stacks += [Stack(pair, strength, "pair", "selection") for pair in pairs if _apart(finished, plan, pair)]
        stack: tuple[str, ...] = ()
        for name in candidates:
            if len(stack) < wanted.best and _apart(finished, plan, (*stack, name)):
                stack = (*stack, name)
                stacks.append(Stack(stack, strength, "best", "final"))
    return stacks


async def _greedy(
    scorer: VariantScorer, plan: Plan, finished: FinishedSweep, size: int, strength: float
) -> list[Stack]:
    """Grow a stack by the run that raises its score on the selection split most; return those to score as final."""
    candidates, stack, grown = _candidates(finished, plan), (), []
    while len(stack) < size:
        tried = [
            Stack((*stack, name), strength, "greedy", "selection")
            for name in candidates
            if name not in stack and _apart(finished, plan, (*stack, name))
        ]
        if not tried:
            break
        scores = await scorer.score([each.variant for each in tried], finished.spec.seeds)
        table = variant_scores(scores, finished.table, pd.DataFrame({"variant": [s.name for s in tried]}), "selection")
        stack = tried[int(table["score"].to_numpy().argmax())].members
        grown.append(Stack(stack, strength, "greedy", "final"))
    return grown


def _candidates(finished: FinishedSweep, plan: Plan) -> list[str]:
    """Return the runs over a part of the model, the best on the selection split first."""
    names = [name for name, selection in finished.selections.items() if not selection.trains_all]
    swept = {run.selection.name for run in plan.runs}
    return finished.order([name for name in names if name in swept])


def _apart(finished: FinishedSweep, plan: Plan, members: tuple[str, ...]) -> bool:
    """Tell whether no parameter was trained by two of these runs."""
    selections: list[Selection] = [finished.selections[name] for name in members]
    trained = [name for selection in selections for name in trained_weights(selection, plan.architecture)]
    return len(set(trained)) == len(trained)


def fewer_than_wanted(wanted: Wanted, stacks: Sequence[Stack]) -> list[str]:
    """Say of which rules there are fewer runs, trained apart from each other, than were asked for."""
    said = []
    for rule, asked in (("best", wanted.best), ("pair", wanted.pairs), ("greedy", wanted.greedy)):
        found = len({member for stack in stacks if stack.rule == rule for member in stack.members})
        if found < asked:
            option = "pairs" if rule == "pair" else rule
            said.append(f"--{option} {asked}: only {found} completed runs of this sweep can be added up")
    return said


def _show(rows: pd.DataFrame, notes: Sequence[str] = ()) -> None:
    shown = Table("rule", "stack", "strength", "split", "score", "C", "95 %")
    for row in rows.to_dict("records"):
        shown.add_row(
            row["rule"], row["stack"], number_text(row["strength"]), row["split"], number_text(row["score"]),
            number_text(row["contribution"]), interval_text(row["contribution_low"], row["contribution_high"]),
        )  # fmt: skip
    wide_console().print(shown)
    for note in notes:
        wide_console().print(note, markup=False)
