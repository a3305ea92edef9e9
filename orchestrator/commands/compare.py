"""`layersweep compare`: tables loaded and named apart, their agreement printed, and a page of it on request."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath

import pandas as pd
from rich.table import Table

from layersweep.orchestrator.report.comparison_text import explanation, interval, number, shared
from layersweep.orchestrator.report.format import wide_console
from layersweep.orchestrator.report.probe_table import show_agreement
from layersweep.orchestrator.report.suite_comparison import HEADS, suite_rows
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.factorial import folders_within
from layersweep.orchestrator.statistics.layer_profile import Profile, load_profile
from layersweep.orchestrator.statistics.probe_agreement import probe_agreement
from layersweep.orchestrator.statistics.profile_agreement import compare_all, concentrations, matrix
from layersweep.orchestrator.statistics.profile_variance import shares_text, variance_shares
from layersweep.rollout.data.locations import local_path
from layersweep.workers.storage.files import read_bytes, resolve_uri
from layersweep.workers.storage.tables import CONTRIBUTION, PROBE

FEW = 8
"""Tables of which every pair is printed as a matrix too; more do not fit a terminal."""


def sweeps_in(paths: Sequence[str]) -> list[str]:
    """Return the paths, with that of a spec with factors as those of its sweeps that have a table."""
    found: list[str] = []
    for path in paths:
        found += [one for one in folders_within(path) if read_bytes(f"{one}/contribution.parquet") is not None] or [
            path
        ]
    return found


def load_profiles(paths: Sequence[str], noise: float | None = None) -> list[Profile]:
    """Return the profiles in sweeps' folders, parquet files of ours, or CSV files.

    Args:
        paths: paths or fsspec URIs, none of a spec with factors (see `sweeps_in`).
        noise: standard deviation of C, for tables that carry none.

    Raises:
        SpecError: a table that is not there or holds no profile, one that is given twice, or fewer than two.
    """
    if len(paths) < 2:
        raise SpecError(["a comparison needs at least two tables"])
    problems, profiles, files = [], [], []
    for path in paths:
        try:
            table = _table_of(path)
            files.append(_resolved(table))
            profiles.append(load_profile(table, noise=noise))
        except FileNotFoundError:
            problems.append(f"{path}: no such table")
        except (OSError, ImportError, ValueError) as error:  # ValueError: no such protocol, no profile
            problems.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    if twice := [path for path, count in Counter(files).items() if count > 1]:
        problems.insert(0, f"{twice[0]} is given more than once")
    if problems:
        raise SpecError(problems)
    return _named_apart(profiles, files)


def _table_of(path: str) -> str:
    """Return the path or URI of a table: the contribution table where it is that of a folder.

    Raises:
        FileNotFoundError: there is nothing.
    """
    filesystem, inner = resolve_uri(path)
    if not filesystem.exists(inner):
        raise FileNotFoundError(path)
    return f"{path.rstrip('/')}/contribution.parquet" if filesystem.isdir(inner) else path


def _resolved(path: str) -> PurePath:
    """Return the path in its filesystem, links followed where it is local."""
    _, inner = resolve_uri(path)
    return PurePosixPath(inner) if local_path(path) is None else Path(inner).resolve()


def _named_apart(profiles: list[Profile], files: list[PurePath]) -> list[Profile]:
    """Give tables of the same name as much of their folders as tells them apart."""
    names = [profile.name for profile in profiles]
    parents = [file.parent for file in files]
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
    paths = sweeps_in(paths)
    profiles = load_profiles(paths, noise)
    pairs, shares = compare_all(profiles, top), concentrations(profiles, top)
    suites = suite_rows([(profile.name, _table_of(path)) for profile, path in zip(profiles, paths, strict=True)])
    varied = variance_shares(profiles)
    show_comparison(profiles, pairs, shares, top)
    show_variance(varied, profiles)
    show_suites(suites)
    show_agreement(_probes(profiles, paths))
    if folder is None:
        return []
    from layersweep.orchestrator.report.comparison_page import write_comparison

    return write_comparison(folder, profiles, pairs, shares, top, suites, varied)


def _probes(profiles: Sequence[Profile], paths: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return how measures of a probe agree with C, by the name of each sweep whose base was probed."""
    found = {}
    for profile, path in zip(profiles, paths, strict=True):
        table = _table_of(path)
        folder, _, name = table.rpartition("/")
        if name != f"{CONTRIBUTION.name}.parquet":
            continue
        if (content := read_bytes(f"{folder}/{PROBE.name}.parquet")) is not None:
            found[profile.name] = probe_agreement(PROBE.parse(content), CONTRIBUTION.read(table))
    return found


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


def show_variance(varied: pd.DataFrame, profiles: Sequence[Profile]) -> None:
    """Print what the profiles vary by; nothing where that cannot be told."""
    if not len(varied):
        return
    console, shown = wide_console(), Table("variance of the profiles by", "share", "95 %")
    for row in varied.itertuples():
        shown.add_row(row.component, number(row.share), f"{row.low:.2f} .. {row.high:.2f}")
    console.print(shown)
    console.print(shares_text(varied, min(profile.seeds for profile in profiles)), style="dim")


def show_suites(rows: Sequence[tuple[str, ...]]) -> None:
    """Print what sweeps with several suites gained on each; nothing where there are none."""
    if not rows:
        return
    shown = Table(*HEADS)
    for row in rows:
        shown.add_row(*row)
    wide_console().print(shown)
