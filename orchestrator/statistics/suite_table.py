"""contribution_by_suite.parquet: score, gain and contribution on every suite, and in and out of domain.

A suite that counts is in domain: S is the mean over these. The others (`counts: false`) are out of domain: what a run
gains or loses there it was not trained and not picked for. The study's C_math and C_all are the contributions over
`@in_domain` and over `@all`.
"""

from collections.abc import Mapping

import pandas as pd

from layersweep.workers.storage.tables import BY_SUITE

from .contribution import ScoredRuns
from .score_arrays import SelectionFacts, last_steps, responses_of_split, selection_facts, suites_that_count

IN_DOMAIN, OUT_OF_DOMAIN, ALL = "@in_domain", "@out_of_domain", "@all"
"""Groups of suites, as the column `suite` has them."""


def suite_table(sweep: str, runs: pd.DataFrame, scores: pd.DataFrame, *, seed_sd: float | None = None) -> pd.DataFrame:
    """Build contribution_by_suite.parquet: rows by split, by suite (groups last), then by selection as they come.

    Intervals are those of contribution.parquet, from the scores on the suite alone: a seed variance is estimated for
    each suite. Trials of learning rates are left out.

    Args:
        sweep: its name.
        runs: one row per run (and base): selection, kind, layer.
        scores: the content of scores.parquet.
        seed_sd: as for `contribution_table`; a standard deviation of S, taken for every suite's too.
    """
    facts = {name: known for name, known in selection_facts(runs).items() if known.kind != "trial"}
    rows = []
    for split in ("selection", "final"):
        there = responses_of_split(scores, split, uncounted=True)
        there = there[there["selection"].isin(list(facts))]
        counted = {
            suite: counts for suite, counts in suites_that_count(scores).items() if (there["suite"] == suite).any()
        }
        of_suites: dict[tuple[str, ...], list[dict]] = {}
        for name, suites in groups(counted).items():
            if tuple(suites) not in of_suites:  # all of them may be in domain, or there may be one alone
                of_suites[tuple(suites)] = _of_suites(there[there["suite"].isin(suites)], suites, facts, seed_sd)
            known = {"sweep": sweep, "split": split, "suite": name, "counts": counted.get(name)}
            rows += [known | row for row in of_suites[tuple(suites)]]
    frame = pd.DataFrame(rows, columns=None if rows else list(BY_SUITE.types))
    return BY_SUITE.frame(frame[[name for name in BY_SUITE.types if name in frame]])


def _of_suites(
    scores: pd.DataFrame, suites: list[str], facts: dict[str, SelectionFacts], seed_sd: float | None
) -> list[dict]:
    """Make a row per selection of its scores on some suites, as if there were no others."""
    last, _ = last_steps(scores, suites)
    scored = ScoredRuns(scores, suites, last, facts, seed_sd)
    return [
        {"selection": name, "kind": known.kind, "layer": known.layer} | scored.row(name) | scored.gain(name)
        for name, known in facts.items()
        if name in last
    ]


def groups(counted: Mapping[str, bool]) -> dict[str, list[str]]:
    """Return suites by the name of their group: each for itself, then those in domain, the others, and all of them.

    Args:
        counted: whether a suite is part of S.
    """
    inside, outside = ([suite for suite, counts in counted.items() if counts is wanted] for wanted in (True, False))
    found = {suite: [suite] for suite in counted} | {IN_DOMAIN: inside, OUT_OF_DOMAIN: outside, ALL: [*counted]}
    return {name: suites for name, suites in found.items() if suites}
