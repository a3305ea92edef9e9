"""`layersweep responses`: kept responses, found by run, suite and verdict, and printed one below the other."""

from collections.abc import Collection, Sequence

import pandas as pd

from layersweep.orchestrator.report.format import format_number, is_missing, plain_console
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.statistics.solved_prompts import RIGHT
from layersweep.policies.selection import parse_run_name
from layersweep.policies.wording import counted
from layersweep.workers.storage.responses import kept_files


def find_responses(
    folder: str,
    runs: Collection[str] = (),
    *,
    suite: str | None = None,
    split: str | None = None,
    step: int | None = None,
    seed: int | None = None,
    prompt: str | None = None,
) -> pd.DataFrame:
    """Read kept responses: the columns of RESPONSES and `step`, by prompt, then in the order of `runs`.

    Args:
        folder: the sweep's folder or URI.
        runs: selections (`layer-07`) or runs (`layer-07-seed0`); none is all.
        suite, split, seed, prompt: which alone; None is all.
        step: training steps done; None is each run's last one.

    Raises:
        SpecError: nothing was kept, or nothing of that description.
    """
    folder = folder.rstrip("/")
    files = list(kept_files(folder))
    if not files:
        raise SpecError([f"{folder}: no responses are kept there; `responses` in the spec says which are"])
    known = dict.fromkeys(file.run for file in files)
    selections = {run: (parse_run_name(run) or (run, 0)) for run in known}
    if strange := [name for name in runs if not any(name in (run, selections[run][0]) for run in known)]:
        names = ", ".join(dict.fromkeys(selection for selection, _ in selections.values()))
        raise SpecError([f"{strange[0]}: no responses of it are kept; there are {names}"])
    of_runs = [file for file in files if not runs or file.run in runs or selections[file.run][0] in runs]
    wanted = [
        file
        for file in of_runs
        if (suite is None or file.suite == suite)
        and (split is None or file.split == split)
        and (seed is None or selections[file.run][1] == seed)
        and (step is None or file.step == step)
    ]
    if step is None:
        last = {file.run: file.step for file in sorted(wanted, key=lambda file: file.step)}
        wanted = [file for file in wanted if file.step == last[file.run]]
    try:
        parts = [file.read() for file in wanted]
    except (OSError, ValueError) as error:
        raise SpecError([f"{folder}: a file of responses cannot be read: {error}"]) from error
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["prompt"])
    if prompt is not None:
        found = found[found["prompt"] == prompt]
    if not len(found):
        kept = {
            "split": {file.split for file in of_runs},
            "suite": {file.suite for file in of_runs if file.suite},
            "seed": {selections[file.run][1] for file in of_runs},
            "step": {file.step for file in of_runs},
        }
        there = "; ".join(f"--{option} {', '.join(map(str, sorted(values)))}" for option, values in kept.items())
        raise SpecError([
            f"{folder}: no kept response is of that description; of these runs there are {there} "
            "(`responses` in the spec says what is kept)"
        ])  # fmt: skip
    place = {name: at for at, name in enumerate(runs)}
    order = [place.get(name, len(place)) for name in found["selection"]]
    found = found.assign(order=order).sort_values(
        ["split", "suite", "prompt", "order", "selection", "seed", "sample"], kind="stable"
    )
    return found.drop(columns="order").reset_index(drop=True)


def show_responses(found: pd.DataFrame, limit: int, right: bool | None = None, truncated: bool = False) -> None:
    """Print responses prompt by prompt, those of several runs below each other.

    Args:
        found: from `find_responses`.
        limit: prompts at most.
        right: only right or only wrong ones; None is both.
        truncated: only those that were cut at the token limit.
    """
    kept = pd.Series(True, found.index)
    if right is not None:
        kept &= (found["score"] >= RIGHT) == right
    if truncated:
        kept &= found["truncated"].fillna(False)
    shown = found[kept]
    console = plain_console(width=None)
    prompts = list(shown.groupby(["split", "suite", "prompt"], sort=False, dropna=False))
    for (split, suite, prompt), rows in prompts[:limit]:
        place = split if is_missing(suite) else f"{split}, {suite}"
        console.print(f"--- {place}, prompt {prompt}", style="bold", soft_wrap=True)
        console.print(rows["question"].iloc[0], soft_wrap=True)
        for row in rows.to_dict("records"):
            console.print(_heading(row), style="dim", soft_wrap=True)
            console.print(row["response"], soft_wrap=True)
    more = f"; shown are the first {limit} prompts" if len(prompts) > limit else ""
    console.print(
        f"{len(shown)} of {counted(len(found), 'responses')}, to {counted(len(prompts), 'prompts')}{more}", style="dim"
    )


def _heading(row: dict) -> str:
    verdict = "right" if row["score"] >= RIGHT else "wrong"
    known: Sequence[str] = [
        f"[{row['selection']} seed {row['seed']}, step {row['step']}, sample {row['sample']}]",
        f"{verdict} ({format_number(row['score'])})",
        "no answer" if is_missing(row["answer"]) else f"answer {row['answer']}",
        f"{row['response_tokens']} tokens",
    ]
    return "  ".join([*known, "truncated"] if row["truncated"] is True else known)
