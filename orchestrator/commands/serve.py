"""`layersweep serve`: a sweep's base, runs and stacks as models behind OpenAI's protocol, all from one engine."""

import asyncio
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersweep.orchestrator.report.format import size
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.selection import run_name
from layersweep.workers.startup.environment import worker_environment

from .export import base_folder, composed_stacks, local_overlay, overlays
from .finished_sweep import FinishedSweep, open_sweep

if TYPE_CHECKING:
    from layersweep.rollout.serving.run_engine import ServedModel

TOKEN = "LAYERSWEEP_TOKEN"
"""Environment variable of the token; where it is not set one is drawn."""
THREADS = "OMP_NUM_THREADS"
"""Environment variable of the engine's threads on a CPU: kept where it is set, since there are no other actors."""
GRACE = 5
"""Seconds that requests have to end once the server is asked to stop."""


@dataclass(frozen=True)
class Address:
    """Place of the server, and who may use it."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    token: bool = True
    """Whether requests must bear a token."""


@dataclass(frozen=True)
class RunStack:
    """Model beside the base: members by name, each with the factor of its change, all of one seed."""

    name: str
    members: Mapping[str, float]
    seed: int


def serve(
    sweep: str,
    runs: Sequence[str] = (),
    stacks: Sequence[tuple[str, ...]] = (),
    address: Address = Address(),
    overrides: Mapping[str, Any] | None = None,
) -> int:
    """Serve models until a signal ends it; returns the exit code: 0, or 1 where the engine failed.

    Args:
        sweep: its folder or URI.
        runs: selections, or runs by selection and seed.
        stacks: members of each; one alone is a stack of composition.parquet by its name. Neither runs nor stacks: all
            completed runs, and all stacks of that table.
        overrides: values that replace those of its spec, such as `rollout.max_model_len`.

    Raises:
        SpecError: no such sweep, run or stack; a model that cannot be served; an address that cannot be had.
    """
    finished = open_sweep(sweep, overrides)
    models = models_of(finished, runs, stacks)
    base = base_folder(finished.spec)
    try:
        architecture = Architecture.from_folder(base)
    except ValueError as error:
        raise SpecError([f"model: {error}"]) from error
    spec = finished.spec
    dtype = spec.training.dtype if spec.rollout.dtype == "auto" else spec.rollout.dtype
    token = (os.environ.get(TOKEN) or f"sk-{secrets.token_urlsafe(24)}") if address.token else None
    with bound_socket(address) as listening:
        print(f"starting the engine: {base}, {dtype}", flush=True)
        threads = {THREADS: os.environ[THREADS]} if THREADS in os.environ else {}
        os.environ.update(worker_environment(spec.resources.on_gpu()) | threads)
        with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as scratch:
            served = local_models(finished, models, Path(scratch))
            if not asyncio.run(_serve(spec, base, architecture.name, dtype, served, listening, token)):
                print("layersweep: the engine failed, for the reason above", file=sys.stderr)
                return 1
    print("stopped", flush=True)
    return 0


async def _serve(
    spec: SweepSpec,
    base: Path,
    architecture: str,
    dtype: str,
    models: "Sequence[ServedModel]",
    listening: socket.socket,
    token: str | None,
) -> bool:
    """Serve until a signal ends it; returns whether the engine was well then."""
    began = time.monotonic()
    import uvicorn

    from layersweep.rollout.serving.app import make_app
    from layersweep.rollout.serving.check import check_models
    from layersweep.rollout.serving.run_engine import RunEngine

    trusted = getattr(spec.model, "trust_remote_code", False)
    try:
        engine = RunEngine.start(str(base), architecture, spec.rollout, dtype, trusted)
    except ValueError as error:
        raise SpecError([str(error)]) from error
    try:
        await engine.prepare()
        taken = 0
        for number, model in enumerate(models, start=1):
            taken += await engine.load(model)
            print(f"loaded {model.name} ({number} of {len(models)}; {size(taken)})", flush=True)
        difference = await check_models(engine, str(base), dtype, models, trusted)
        print(f"checked against transformers: {difference:.2g} nats apart at most", flush=True)
        template = getattr(spec.model, "chat_template", None), getattr(spec.model, "template_arguments", None)
        app = make_app(engine, str(base), models, token, *template)
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        print(f"ready after {time.monotonic() - began:.0f} s: {len(models) + 1} models at {url}")
        print(f"token: {token}" if token else "no token: whoever reaches this address may use it", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE))
        app.state.server = server  # which vLLM's handlers end if the engine dies
        await server.serve(sockets=[listening])
        return not engine.errored
    finally:
        engine.shutdown()


def models_of(finished: FinishedSweep, runs: Sequence[str], stacks: Sequence[tuple[str, ...]]) -> list[RunStack]:
    """Return the models beside the base that are asked for; all where none is.

    A run is named by its selection where one seed was trained, else by selection and seed (`layer-07-seed1`); stacks
    likewise.

    Raises:
        SpecError: no such run or stack, or members without a seed in common.
    """
    seeds: dict[str, list[int]] = {name: [] for name in finished.selections}
    for overlay in overlays(finished.folder):
        if overlay.selection in seeds:
            seeds[overlay.selection].append(overlay.seed)
    models = [model for name, own in seeds.items() for model in _by_seed(name, {name: 1.0}, own)]
    known = {
        name: members for name, members in composed_stacks(finished.folder).items() if seeds.keys() >= members.keys()
    }
    if runs or stacks:
        models = [model for run in runs for model in _asked_for(finished, models, run)]
        known = dict(_stack(finished, known, members) for members in stacks)
    for name, members in known.items():
        shared = sorted(set.intersection(*(set(seeds[member]) for member in members)))
        if not shared:
            raise SpecError([f"--stack {'+'.join(members)}: no seed was trained for each of them"])
        models += _by_seed(name, members, shared)
    return list({model.name: model for model in models}.values())


def _by_seed(name: str, members: Mapping[str, float], seeds: Sequence[int]) -> list[RunStack]:
    return [RunStack(name if len(seeds) == 1 else run_name(name, seed), members, seed) for seed in seeds]


def _asked_for(finished: FinishedSweep, models: Sequence[RunStack], run: str) -> list[RunStack]:
    """Return the models of a run, by its selection alone of all its seeds."""
    found = [model for model in models if run in (*model.members, *(run_name(m, model.seed) for m in model.members))]
    if not found:
        known = ", ".join(finished.selections)
        raise SpecError([f"--run {run}: no completed run of {finished.folder}; there are {known}"])
    return found


def _stack(
    finished: FinishedSweep, known: Mapping[str, Mapping[str, float]], members: tuple[str, ...]
) -> tuple[str, Mapping[str, float]]:
    """Return name and members of a stack, given by its members or, alone, by its name in composition.parquet."""
    if len(members) == 1 and members[0] in known:
        return members[0], known[members[0]]
    if unknown := [member for member in members if member not in finished.selections]:
        there = ", ".join([*finished.selections, *known])
        raise SpecError(
            [f"--stack {'+'.join(members)}: {unknown[0]} is no completed run of {finished.folder}; there are {there}"]
        )
    if len(set(members)) < len(members):
        raise SpecError([f"--stack {'+'.join(members)}: names a run twice"])
    from .compose import Stack  # and with it Ray

    return Stack(members, 1.0, "given", "selection").name, dict.fromkeys(members, 1.0)


def local_models(finished: FinishedSweep, models: Sequence[RunStack], scratch: Path) -> "list[ServedModel]":
    """Return models by the local files of their members; those in a bucket are copied into `scratch`."""
    from layersweep.rollout.serving.run_engine import ServedModel

    files: dict[tuple[str, int], str] = {}
    wanted = {(member, model.seed) for model in models for member in model.members}
    for overlay in overlays(finished.folder):
        if (overlay.selection, overlay.seed) in wanted:
            files[overlay.selection, overlay.seed] = str(local_overlay(overlay, Path(tempfile.mkdtemp(dir=scratch))))
    return [
        ServedModel(model.name, {files[member, model.seed]: factor for member, factor in model.members.items()})
        for model in models
    ]


def bound_socket(address: Address) -> socket.socket:
    """Bind the address, before anything heavy starts.

    Raises:
        SpecError: it is in use or not this machine's; it can be reached from elsewhere, and there is no token.
    """
    if not address.token and not _is_loopback(address.host):
        raise SpecError([f"--no-token: {address.host} can be reached from other machines; leave --host out"])
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(
            [f"--host {address.host} --port {address.port}: {reason}; --port 0 takes a free one"]
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
