"""How often a sweep's interval of C holds what other sweeps of the same spec, with seeds of their own, find.

Sweeps of the demo are run one after the other, each with its own seeds; those that FOLDER has already are read. A
case is a layer of one sweep: its interval and the mean of C of the same layer in the other sweeps. The other sweeps'
mean varies itself, so an interval of 95 % for the truth should hold it in about 94 % of cases with ten sweeps; all
sweeps are scored on the same prompts, so what prompts add to an interval is not put to the test. The same is shown for
single seeds, as if each had been a sweep. Each type of control has its own line, and how many of its intervals hold 0:
that a control does nothing is what it is there to say.

    python -m tests.benchmarks.interval_coverage FOLDER             # ten sweeps of three seeds
    python -m tests.benchmarks.interval_coverage FOLDER --sweeps 20 'layers=[1, 3]' \\
        'controls=[{type: random_direction, of: layers}, {type: random_reward, of: 3}]'
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from layersweep.cli import DEMO
from layersweep.orchestrator.statistics.contribution import contribution_table
from tests.benchmarks.common import print_table

FIRST_SEED = 100
"""First seed of the first sweep; none of them is one of the demo's own."""


def run_sweep(folder: Path, number: int, seeds: int, changes: list[str]) -> Path:
    """Run a sweep that is not finished yet, with changes of the demo's spec, and return its folder."""
    sweep, first = folder / f"coverage-{number}", FIRST_SEED + number * seeds
    verb = ["resume", sweep] if sweep.exists() else [
        "run", DEMO, f"name={sweep.name}", f"output={folder}", f"seeds={[*range(first, first + seeds)]}",
        *changes,
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "layersweep", *map(str, verb)], check=True)
    return sweep


def of_each_seed(sweep: Path) -> list[pd.DataFrame]:
    """Contribution tables of a sweep's seeds, each by itself."""
    scores, runs = pd.read_parquet(sweep / "scores.parquet"), pd.read_parquet(sweep / "contribution.parquet")
    base = scores["selection"] == "base"
    return [
        contribution_table(scores[base | (scores["seed"] == seed)], runs, split="selection")
        for seed in scores.loc[~base, "seed"].unique()
    ]


def coverage(tables: list[pd.DataFrame]) -> list[object]:
    """Summarise cases: how many, the share whose interval holds the other tables' mean and the one whose holds 0, mean
    C and width, and the sd of C between the tables."""
    tables = [table.set_index("selection") for table in tables]
    c, low, high = (
        np.array([table.loc[tables[0].index, name] for table in tables], float)
        for name in ("contribution", "contribution_low", "contribution_high")
    )
    others = (c.sum(0) - c) / (len(c) - 1)
    held, held_0 = ((low <= value) & (value <= high) for value in (others, np.zeros(1)))
    return [c.size, *(float(x.mean()) for x in (held, held_0, c, high - low, c.std(0, ddof=1)))]


def groups(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Part a contribution table into its layers and each type of control."""
    controls = table[table["kind"] == "control"]
    return {"layer": table[table["kind"] == "layer"], **dict(list(controls.groupby("control")))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE", help="changes of the demo's spec")
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="of each sweep")
    args = parser.parse_intermixed_args()
    found = [run_sweep(args.folder.resolve(), number, args.seeds, args.changes) for number in range(args.sweeps)]
    whole = [groups(pd.read_parquet(sweep / "contribution.parquet")) for sweep in found]
    single = [table for sweep in found for table in of_each_seed(sweep)]
    rows = [[f"{name}, {args.seeds} seeds", *coverage([sweep[name] for sweep in whole])] for name in whole[0]]
    print_table(
        f"{args.sweeps} sweeps of the demo, {args.seeds} seeds each",
        ["what", "cases", "held", "held 0", "mean C", "mean width", "sd of C between sweeps"],
        [*rows, ["layer, one seed", *coverage([table[table["kind"] == "layer"] for table in single])]],
    )


if __name__ == "__main__":
    main()
