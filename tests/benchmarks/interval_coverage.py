"""How often a sweep's interval of C holds what other sweeps of the same spec, with seeds of their own, find.

Sweeps of the demo are run one after the other, each with its own seeds; those that FOLDER has already are read. A
case is a layer of one sweep: its interval and the mean of C of the same layer in the other sweeps. The other sweeps'
mean varies itself, so an interval of 95 % for the truth should hold it in about 94 % of cases with ten sweeps; all
sweeps are scored on the same prompts, so what prompts add to an interval is not put to the test. The same is shown for
single seeds, as if each had been a sweep.

    python -m tests.benchmarks.interval_coverage FOLDER             # ten sweeps of three seeds
    python -m tests.benchmarks.interval_coverage FOLDER 20 2        # twenty of two
"""

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


def run_sweep(folder: Path, number: int, seeds: int) -> Path:
    """Run a sweep that is not finished yet, and return its folder."""
    sweep, first = folder / f"coverage-{number}", FIRST_SEED + number * seeds
    verb = ["resume", sweep] if sweep.exists() else [
        "run", DEMO, f"name={sweep.name}", f"output={folder}", f"seeds={[*range(first, first + seeds)]}",
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
    """Summarise cases: how many, the share that is covered, mean width, and the sd of C between the tables."""
    tables = [table[table["kind"] == "layer"].set_index("selection") for table in tables]
    c, low, high = (
        np.array([table.loc[tables[0].index, name] for table in tables], float)
        for name in ("contribution", "contribution_low", "contribution_high")
    )
    others = (c.sum(0) - c) / (len(c) - 1)
    held = (low <= others) & (others <= high)
    return [c.size, float(held.mean()), float((high - low).mean()), float(c.std(0, ddof=1).mean())]


if __name__ == "__main__":
    wanted = [int(text) for text in sys.argv[2:]]
    count, seeds_each = wanted or (10, 3)
    found = [run_sweep(Path(sys.argv[1]).resolve(), number, seeds_each) for number in range(count)]
    whole = [pd.read_parquet(sweep / "contribution.parquet") for sweep in found]
    print_table(
        f"{count} sweeps of the demo, {seeds_each} seeds each",
        ["sweeps of", "cases", "held", "mean width", "sd of C between sweeps"],
        [
            [f"{seeds_each} seeds", *coverage(whole)],
            ["one seed", *coverage([table for sweep in found for table in of_each_seed(sweep)])],
        ],
    )
