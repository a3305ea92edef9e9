"""`layersweep compare`: tables loaded and named apart, their agreement printed, and a page of it on request."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.table import Table

from layersweep.orchestrator.report.comparison_text import explanation, interval, number, shared
from layersweep.orchestrator.report.format import wide_console
from layersweep.orchestrator.report.suite_comparison import HEADS, suite_rows
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.statistics.layer_profile import Profile, load_profile
from layersweep.orchestrator.statistics.profile_agreement import compare_all, concentrations, matrix

FEW = 8
"""Tables of which every pair is printed as a matrix too; more do not fit a terminal."""


def load_profiles(paths: Sequence[str], noise: float | None = None) -> list[Profile]:
    """The profiles in sweeps' folders, parquet files of ours, or CSV files.

    Args:
        noise: standard deviation of C, for tables that carry none.

    Raises:
        SpecError: a table that is not there or holds no profile, one that is given twice, or fewer than two.
    """
    if len(paths) < 2:
        raise SpecError(["a comparison needs at least two tables"])
    files = [_table_of(path) for path in paths]
    if absent := [f"{file}: no such table" for file in files if not os.path.isfile(file)]:
        raise SpecError(absent)
    if twice := [str(path) for path, count in Counter(file.resolve() for file in files).items() if count > 1]:
        raise SpecError([f"{twice[0]} is given more than once"])
    problems, profiles = [], []
    for path, file in zip(paths, files, strict=True):
        try:
            profiles.append(load_profile(file, noise=noise))
        except OSError as error:
            problems.append(f"{path}: {error.strerror or error}")
        except ValueError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise SpecError(problems)
    return _named_apart(profiles, files)


def _table_of(path: str) -> Path:
    found = Path(path)
    return found / "contribution.parquet" if os.path.isdir(found) else found


def _named_apart(profiles: list[Profile], files: list[Path]) -> list[Profile]:
    """Give tables of the same name as much of their folders as tells them apart."""
    names = [profile.name for profile in profiles]
    parents = [file.resolve().parent for file in files]
    own = [parent.name == name for parent, name in zip(parents, names, strict=True)]
    depth = 0
    while len(set(names)) < len(names):
        depth += 1
        clashes = {name for name, count in Counter(names).items() if count > 1}
        for i, name in enumerate(names):
            above = parents[i].parts[: len(parents[i].parts) - own[i]]
            if name in clashes:
                names[i] = f"{above[-depth]}/{name}" if depth <= len(above) else f"{name} ({i + 1})"
    return [replace(profile, name=name) for profile, name in zip(profiles, names, strict=True)]


def compare_tables(paths: Sequence[str], top: int, noise: float | None, folder: str | None) -> list[str]:
    """Print the agreement of two or more tables; with a `folder`, write compare.html and compare.png there.

    Returns the paths written.
    """
    profiles = load_profiles(paths, noise)
    pairs, shares = compare_all(profiles, top), concentrations(profiles, top)
    suites = suite_rows([(profile.name, _table_of(path)) for profile, path in zip(profiles, paths, strict=True)])
    show_comparison(profiles, pairs, shares, top)
    show_suites(suites)
    if folder is None:
        return []
    from layersweep.orchestrator.report.comparison_page import write_comparison

    return write_comparison(folder, profiles, pairs, shares, top, suites)


def show_comparison(profiles: Sequence[Profile], pairs: pd.DataFrame, shares: pd.DataFrame, top: int) -> None:
    """Print a comparison on the terminal."""
    console = wide_console()
    shown = Table("tables", "layers", "Spearman observed", "noise-corrected", "95 %", f"top {top} shared", "verdict")
    for row in pairs.itertuples():
        shown.add_row(
            f"{row.a} and {row.b}", str(row.layers), number(row.spearman), number(row.rho), interval(row), shared(row),
            row.verdict,
        )  # fmt: skip
    console.print(shown)
    if 3 <= len(shares) <= FEW:
        for column, title in (("rho", "noise-corrected Spearman"), ("spearman", "observed Spearman")):
            square = matrix(pairs, column)
            if pairs[column].notna().any():
                table = Table(title, *square.columns)
                for name, values in square.iterrows():
                    table.add_row(name, *map(number, values))
                console.print(table)
    concentrated = Table("table", f"share of the top {top}", "centre of mass (depth)", "Gini")
    for row in shares.itertuples():
        concentrated.add_row(row.table, number(row.top_share), number(row.centre_of_mass), number(row.gini))
    console.print(concentrated)
    console.print(explanation(pairs, profiles), style="dim")


def show_suites(rows: Sequence[tuple[str, ...]]) -> None:
    """Print what sweeps with several suites gained on each; nothing where there are none."""
    if not rows:
        return
    shown = Table(*HEADS)
    for row in rows:
        shown.add_row(*row)
    wide_console().print(shown)
