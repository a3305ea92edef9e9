"""`layersweep probe`: what the untrained base tells of its layers, and whether it predicts their contributions."""

from functools import partial

import pandas as pd
from rich.table import Table

from layersweep.orchestrator.execution.manifest import SweepManifest
from layersweep.orchestrator.execution.probing import probe_base
from layersweep.orchestrator.execution.screening import Screening
from layersweep.orchestrator.execution.sweep_folder import check_folder, holds_sweep
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.report import write_report
from layersweep.orchestrator.report.format import wide_console
from layersweep.orchestrator.report.probe_table import show_agreement
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.orchestrator.statistics.probe_agreement import MEASURES, probe_agreement
from layersweep.workers.storage.files import read_bytes, write_atomically
from layersweep.workers.storage.tables import CONTRIBUTION, PROBE


def probe(spec: SweepSpec, address: str | None = None, screening: Screening | None = None) -> str:
    """Probe a spec's base, write probe.parquet into the sweep's folder, and print it; returns the table's path.

    Where the sweep has contributions already, the measures are held against them, here and in its report.

    Args:
        address: of a running Ray cluster; None starts one here.
        screening: also train every selection for a short while, and score it.

    Raises:
        SpecError: what the spec refers to is not there, its folder holds another experiment, or a driver has it.
        ProbeFailed: it could not be carried out; what a screening has scored is kept.
    """
    plan = make_plan(spec)
    if manifest := SweepManifest.load(plan.folder):
        manifest.asks_no_more_than_done(plan)
    elif not holds_sweep(plan.folder):
        check_folder(plan.folder, fresh=False)
    rows = PROBE.frame(probe_base(plan, address, screening))
    target = f"{plan.folder}/{PROBE.name}.parquet"
    write_atomically(target, partial(PROBE.write, rows))
    _show(rows)
    if (content := read_bytes(f"{plan.folder}/{CONTRIBUTION.name}.parquet")) is not None:
        show_agreement({plan.spec.name: probe_agreement(rows, CONTRIBUTION.parse(content))})
        write_report(plan.folder)
    return target


def _show(rows: pd.DataFrame) -> None:
    """Print the measures of all selections, means over seeds; those that none has are left out."""
    measures = {name: shown for name, shown in MEASURES.items() if rows[name].notna().any()}
    means = rows.groupby(["selection"], sort=False)[list(measures)].mean()
    shown = Table("selection", *measures.values())
    for name, row in means.iterrows():
        shown.add_row(str(name), *(f"{value:.3g}" if pd.notna(value) else "–" for value in row))
    wide_console().print(shown)
