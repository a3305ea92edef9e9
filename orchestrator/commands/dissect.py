"""`layersweep dissect`: what the gain of finished runs is made of, without training."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table

from layersweep.orchestrator.execution.variant_scoring import score_variants
from layersweep.orchestrator.report import write_report
from layersweep.orchestrator.report.format import interval_text, number_text, wide_console
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.statistics.variants import kept_of_runs, variant_scores
from layersweep.policies.selection import MODULES, Selection
from layersweep.policies.variant import RunChange, Variant
from layersweep.workers.storage.tables import DISSECTION

from .finished_sweep import FinishedSweep, open_sweep

RANKS = (1, 4)
SHARES = (0.1, 0.3)
FACTORS = (0.5, 1.5, 2.0)


class Piece(NamedTuple):
    """A variant of one run, and its row's columns."""

    selection: str
    change: str
    part: str | None
    amount: float | None
    variant: Variant


def dissect(
    sweep: str, wanted: Sequence[str] = (), overrides: Mapping[str, Any] | None = None, address: str | None = None
) -> str:
    """Score pieces of finished runs' changes, write dissection.parquet and the report; returns the table's path.

    Args:
        sweep: its folder or URI.
        wanted: selections to take apart; none is all that have completed.
        overrides: values that replace those of its spec: where and how fast, such as `resources.engines`.
        address: of a running Ray cluster.

    Raises:
        SpecError: no such sweep or run.
        VariantsFailed: some could not be scored; called again, it goes on.
    """
    finished = open_sweep(sweep, overrides)
    if unknown := [name for name in wanted if name not in finished.selections]:
        raise SpecError([f"{unknown[0]}: no completed run of {sweep}; there are {', '.join(finished.selections)}"])
    chosen = [finished.selections[name] for name in wanted or finished.selections]
    pieces = [piece for selection in chosen for piece in pieces_of(selection, finished.layers)]

    async def work(scorer: Any, plan: Any) -> pd.DataFrame:
        return await scorer.score([piece.variant for piece in pieces], finished.spec.seeds)

    rows = dissection_table(finished, pieces, score_variants(finished.spec, work, address))
    target = finished.write(DISSECTION, rows, ["variant"])
    _show(rows)
    write_report(finished.folder)
    return target


def pieces_of(selection: Selection, count: int) -> list[Piece]:
    """Return the variants that a run is taken apart into, in a model of `count` layers."""
    name, found = selection.name, []

    def piece(label: str, change: str, part: str | None = None, amount: float | None = None, **how: Any) -> None:
        variant = Variant(f"{name}.{label}", (RunChange(name, **how),))
        found.append(Piece(name, change, part, amount, variant))

    layers = tuple(range(count)) if selection.trains_all else selection.layers
    if selection.modules is None:
        for part in MODULES:
            if selection.lora and part == "norms":
                continue  # which adapters leave as they are
            piece(part, "part", part, keep=Selection.part(layers, part))
    for rank in RANKS:
        piece(f"rank-{rank}", "rank", amount=rank, rank=rank)
    for share in SHARES:
        piece(f"largest-{share:g}", "largest", amount=share, largest=share)
    for factor in FACTORS:
        piece(f"x{factor:g}", "scaled", amount=factor, strength=factor)
    if len(layers) > 1:
        for k in layers:
            piece(f"only-{k:02d}", "only", amount=k, keep=Selection.layer(k))
        for k in layers:
            piece(f"without-{k:02d}", "without", amount=k, leave_out=Selection.layer(k))
    piece("random", "random", random=True)
    return found


def dissection_table(finished: FinishedSweep, pieces: Sequence[Piece], scores: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of dissection.parquet: each run, and its pieces.

    Args:
        scores: the content of scores.parquet, of base, runs and variants.
    """
    whole = list(dict.fromkeys(piece.selection for piece in pieces))
    rows = [{"selection": name, "variant": name, "change": "whole"} for name in whole]
    rows += [piece._asdict() | {"variant": piece.variant.name} for piece in pieces]
    variants = pd.DataFrame(rows, columns=["selection", "variant", "change", "part", "amount"])
    order = variants["selection"].map(whole.index)
    variants = variants.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    runs, seed_sd = finished.table, finished.spec.evaluation.seed_sd
    variants = variant_scores(scores, runs, variants, "selection", seed_sd)
    variants = kept_of_runs(scores, runs, variants, "selection", seed_sd)
    table = variants.join(finished.change_facts(list(variants["variant"])), on="variant")
    of_runs = table["variant"].map(finished.table.set_index("selection")["update_norm"])
    return table.assign(change_norm=table["change_norm"].fillna(of_runs))


def _show(rows: pd.DataFrame) -> None:
    shown = Table("selection", "change", "", "score", "C", "95 %", "kept", "95 %")
    for row in rows.to_dict("records"):
        amount = "" if pd.isna(row["amount"]) else f"{row['amount']:g}"
        what = row["part"] if pd.notna(row["part"]) else amount
        shown.add_row(
            row["selection"] if row["change"] == "whole" else "", row["change"], what, number_text(row["score"]),
            number_text(row["contribution"]), interval_text(row["contribution_low"], row["contribution_high"]),
            number_text(row["kept"]), interval_text(row["kept_low"], row["kept_high"]),
        )  # fmt: skip
    wide_console().print(shown)
