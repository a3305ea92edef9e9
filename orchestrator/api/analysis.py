"""Analyses beside sweeps, of a base and of finished runs: `probe`, `dissect` and `compose` of the public API."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.spec_source import SpecSource, load_spec

if TYPE_CHECKING:
    import pandas as pd


T = TypeVar("T")


def probe(
    spec: SpecSource, *, screen: int | None = None, screen_prompts: int | None = None, address: str | None = None
) -> "pd.DataFrame":
    """Measure every layer of the untrained base on one rollout batch per seed; returns probe.parquet, a row per layer,
    part and seed. Where the sweep has been run, its report holds the measures against C.

    Args:
        spec: a loaded spec, a YAML file, or a dict of fields.
        screen: optimizer steps for which each selection of the sweep is trained on that batch, and then scored: the
            column `screened_gain`. None trains nothing.
        screen_prompts: of each suite at most that it is scored on; None is all.
        address: a running Ray cluster; None starts Ray on this machine.

    Raises:
        SpecError: the spec is bad, what it refers to is not there, or its folder holds another experiment.
        RuntimeError: it could not be carried out; what was screened is kept.
    """
    from layersweep.orchestrator.commands.probe import probe
    from layersweep.orchestrator.execution.screening import Screening
    from layersweep.workers.storage.files import read_table

    if screen_prompts and not screen:
        raise SpecError(["screen_prompts: nothing is trained to be scored on them; give screen too"])
    screening = Screening(screen, screen_prompts) if screen else None
    return read_table(_outside_a_loop(lambda: probe(load_spec(spec), address, screening)))


def dissect(
    sweep: "str | os.PathLike[str]",
    *selections: str,
    overrides: Mapping[str, Any] | None = None,
    address: str | None = None,
) -> "pd.DataFrame":
    """Take finished runs apart without training: parts, ranks, largest entries, multiples; returns dissection.parquet,
    with a row per variant.

    Args:
        sweep: its folder or URI.
        selections: such as `layer-07`; none is all that have completed.
        overrides: fields of the spec that say where and how fast, such as `{"resources.engines": 2}`.
        address: a running Ray cluster; None starts Ray on this machine.

    Raises:
        SpecError: no such sweep or run.
        RuntimeError: some variants could not be scored; called again, it goes on.
    """
    from layersweep.orchestrator.commands.dissect import dissect
    from layersweep.workers.storage.files import read_table

    return read_table(_outside_a_loop(lambda: dissect(os.fspath(sweep), selections, overrides, address)))


def compose(
    sweep: "str | os.PathLike[str]",
    *stacks: Sequence[str | int],
    best: int = 0,
    pairs: int = 0,
    greedy: int = 0,
    strengths: Sequence[float] = (1.0,),
    overrides: Mapping[str, Any] | None = None,
    address: str | None = None,
) -> "pd.DataFrame":
    """Add up what separately trained runs changed, without training; returns composition.parquet, a row per stack.

    Args:
        sweep: its folder or URI.
        stacks: members of each, such as `[1, 5]` or `["layer-01", "layer-05-mlp"]`.
        best: the best 1, 2, ... so many runs together.
        pairs: all pairs of so many of the best runs.
        greedy: members of a stack that grows by the run that raises its score on the selection split most.
        strengths: factors of every member's change; each stack is scored with each of them.
        overrides, address: as for `dissect`.

    Raises:
        SpecError: no such sweep or run, or nothing to add up.
        RuntimeError: some stacks could not be scored; called again, it goes on.
    """
    from layersweep.orchestrator.commands.compose import Wanted, compose, member_name
    from layersweep.workers.storage.files import read_table

    given = tuple(tuple(member_name(str(member)) for member in stack) for stack in stacks)
    wanted = Wanted(given, best, pairs, greedy, tuple(strengths))
    return read_table(_outside_a_loop(lambda: compose(os.fspath(sweep), wanted, overrides, address)))


def _outside_a_loop(call: Callable[[], T]) -> T:
    """Call something that needs an event loop of its own: in a thread where one is running, as in a notebook."""
    running = True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        running = False
    if not running:
        return call()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()
