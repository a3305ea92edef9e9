"""Making a plan from a spec: models resolved, layers numbered, and all checked that can be before a sweep starts."""

import contextlib
import importlib.util
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.factorial import sweeps_of
from layersweep.orchestrator.spec.folders import absolute_folder
from layersweep.orchestrator.spec.layers import CombinedRun
from layersweep.orchestrator.spec.paths import with_absolute_paths
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.orchestrator.spec.user_code_sections import code_texts
from layersweep.policies.config import PretrainedModel
from layersweep.policies.wording import counted
from layersweep.rollout.data.locations import local_path
from layersweep.rollout.data.prompt_data import decontaminate_across
from layersweep.rollout.data.window import Encode, fit_prompts, prompt_uses
from layersweep.workers.storage.files import is_object_store, resolve_uri

from .controls import controlled_selections
from .model_architecture import ResolvedModel, resolve_model
from .model_checks import (
    config_problems,
    field_of_messages,
    model_problems,
    template_problems,
    tokenizer_problems,
    tool_problems,
    window_problems,
)
from .plan import Plan, Run
from .selections import swept_selections

if TYPE_CHECKING:  # transformers: seconds
    from layersweep.rollout.prompt_encoder import PromptEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedSweep:
    """A plan, and what was made to check it."""

    plan: Plan
    tasks: dict[str, Any]
    """Tasks by section of the spec, as a rollout worker would build them."""
    encoder: "PromptEncoder | None"
    """Tokenizer and chat template; None for the tiny model, and where a plan would have to fetch them."""


def make_plan(spec: SweepSpec, fetch: bool = True) -> Plan:
    """Resolve everything that the spec leaves to the model, and check what it refers to.

    Args:
        spec: of the sweep.
        fetch: load prompts from wherever they are, as a run must. Without it, what is not on this machine is left
            `unchecked`, and the study's models need no hub.

    Raises:
        SpecError: layers that the model lacks, a model or data that is not there or cannot be used, prompts that the
            task cannot give or that are too long for the model, an output that cannot be written.
    """
    checked = check_sweep(spec, fetch, fetch)
    for task in checked.tasks.values():
        if hasattr(task, "close"):
            task.close()
    return checked.plan


def check_sweep(spec: SweepSpec, fetch: bool, fetch_data: bool) -> CheckedSweep:
    """Make a plan as `make_plan` does, with `fetch_data` in place of `fetch` for prompts; keep what it took."""
    if spec.factors:
        names = ", ".join(sweep.name for sweep in sweeps_of(spec))
        raise SpecError([f"factors: a plan is of one sweep, and these are several: {names}"])
    spec = with_absolute_paths(spec)
    problems: list[str] = []
    model = None
    code: dict[str, str] = {}
    try:
        code = code_texts(spec)
    except ValueError as error:
        problems.append(str(error))
    tasks, unchecked, task_problems = _built_tasks(spec, fetch_data, try_code=not problems)
    try:
        model = resolve_model(spec, from_table=not fetch, task=tasks.get("task"))
        selections = swept_selections(spec, model.architecture)
        controlled_selections(spec, selections)
    except ValueError as error:
        problems.append(str(error))
    if model is not None:
        problems += model_problems(spec, model, weights_needed=fetch)
    problems += task_problems + _output_problems(spec)
    if spec.training.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        needed = "adamw_8bit needs bitsandbytes wherever trainers run, and it is not installed here; "
        fix = "pip install bitsandbytes there, or choose adamw"
        if fetch:
            problems.append(f"training.optimizer: {needed}{fix}")
        else:  # the trainers may be elsewhere
            unchecked.append(f"training.optimizer ({needed}{fix})")
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    runs = tuple(Run(selection, seed) for seed in spec.seeds for selection in selections)
    unchecked = list(dict.fromkeys(unchecked))
    plan = Plan(spec, model.architecture, runs, model.shape_source, tuple(unchecked), code=code, source=model.source)
    if problems := _search_problems(plan) + _combine_problems(plan) + window_problems(plan):
        raise SpecError(problems)
    return _with_prompts(plan, model, tasks)


def _built_tasks(spec: SweepSpec, fetch: bool, try_code: bool = True) -> tuple[dict[str, Any], list[str], list[str]]:
    """Build the tasks by section of the spec, and try the user's own code in them.

    Returns:
        The tasks, what is not on this machine, and the others' problems.
    """
    tasks: dict[str, Any] = {}
    unchecked: list[str] = []
    problems: list[str] = []
    for section, config in _task_sections(spec):
        if not fetch and (needed := getattr(config, "fetched", None)):
            unchecked.append(needed)
            continue
        try:
            task = config.build()
            if try_code and hasattr(task, "check"):
                task.check()
            tasks[section] = task
        except (ValueError, OSError) as error:
            problems.append(f"{section}: {error}")
    return tasks, unchecked, problems


def _task_sections(spec: SweepSpec) -> Iterator[tuple[str, Any]]:
    yield "task", spec.task
    for i, suite in enumerate(spec.evaluation.suites):
        if suite.task is not None:
            yield f"evaluation.suites[{i}]", suite.task


def _with_prompts(plan: Plan, model: ResolvedModel, tasks: dict[str, Any]) -> CheckedSweep:
    """Complete the plan by the counts of rows and the prompts' fingerprints.

    Raises:
        SpecError: a section that has fewer prompts than it needs, prompts that the model cannot be shown.
    """
    spec, training = plan.spec, plan.spec.training
    trained = tasks.get("task")
    suites = [(suite, tasks.get(f"evaluation.suites[{i}]") if suite.task else trained)
              for i, suite in enumerate(spec.evaluation.suites)]  # fmt: skip
    if trained is not None:
        decontaminate_across(trained, [task for _, task in suites if task is not None])
    all_uses = prompt_uses(trained, suites, training.prompts_per_step, training.max_response_tokens)
    uses = [use for use in all_uses if use.task is not None]
    encoder, problems = _encoder(spec, model, [item for item in _task_sections(spec) if item[0] in tasks])
    if encoder:
        with_tools = {section: task.tools for section, task in tasks.items() if getattr(task, "tools", ())}
        problems += tool_problems(encoder, with_tools)
    encode: Encode | None = encoder and encoder.encode_all
    if not isinstance(spec.model, PretrainedModel):
        # The tiny model has a token for each character.
        encode = None if problems else lambda prompts: (prompt.text for prompt in prompts)
    try:
        fit = fit_prompts(uses, encode, plan.window)
    except TemplateError as error:
        raise SpecError([f"model.chat_template: it refuses a prompt ({error}); give another template"]) from error
    problems += fit.problems
    if problems:
        raise SpecError(problems)
    read = {section: task.data for section, task in tasks.items() if hasattr(task, "data")}
    fingerprints = {section: data.fingerprint() for section, data in read.items()} | fit.digests
    for notice in dict.fromkeys(filter(None, (data.notice for data in read.values()))):
        logger.warning(notice)
    reports = {section: data.report for section, data in read.items()}
    complete = replace(plan, fingerprints=fingerprints, data=reports, overlong=tuple(fit.overlong),
                       prompt_tokens=fit.prompt_tokens)  # fmt: skip
    return CheckedSweep(complete, tasks, encoder)


def _encoder(
    spec: SweepSpec, model: ResolvedModel, sections: list[tuple[str, Any]]
) -> tuple["PromptEncoder | None", list[str]]:
    """Return what tokenizes prompts, None where no tokenizer is at hand or it has problems; and these."""
    if not isinstance(spec.model, PretrainedModel):
        fields = [field for section in sections if (field := field_of_messages(*section))]
        return None, [f"{field}: the tiny model has no chat template; choose plain text" for field in fields]
    if model.tokenizer is None:
        return None, []
    from layersweep.rollout.prompt_encoder import PromptEncoder  # transformers: seconds

    try:
        encoder = PromptEncoder(
            str(model.tokenizer),
            spec.model.trust_remote_code,
            spec.model.chat_template,
            spec.model.template_arguments,
        )
    except Exception as error:  # files that are no tokenizer raise anything
        reason = " ".join(str(error).split())
        fix = "replace its files by the model's own"
        return None, [f"model.path: the tokenizer of {model.tokenizer} cannot be loaded ({reason}); {fix}"]
    problems = config_problems(model, spec.model.trust_remote_code)
    problems += tokenizer_problems(encoder, model, spec.training)
    problems += template_problems(encoder, spec.model, sections)
    return (None if problems else encoder), problems


def _search_problems(plan: Plan) -> list[str]:
    try:
        plan.rungs  # noqa: B018  computed to see whether the budget is feasible
    except ValueError as error:
        return [f"layers.search: {error}"]
    return []


def _combine_problems(plan: Plan) -> list[str]:
    """List what the profile lacks for combined runs; picking from this sweep itself comes later."""
    spec = plan.spec
    if not spec.profile:
        return [problem for i, run in enumerate(spec.combine) for problem in _pick_problems(plan, run, f"combine[{i}]")]
    from .combined_runs import pick, read_profile

    try:
        table = read_profile(spec.profile)
        for run in spec.combine:
            pick(run, table, plan.architecture.layers)
    except ValueError as error:
        return [str(error)]
    return []


def _pick_problems(plan: Plan, run: CombinedRun, where: str) -> list[str]:
    """List layer runs that a combined run picks from and that the sweep itself will not have."""
    kind, wanted = run.which
    if kind == "middle":
        there = plan.architecture.layers
    elif plan.rungs:
        if kind == "worst":
            return [f"{where}: a search stops the worst layers before it knows them; name another sweep as `profile`"]
        there = plan.rungs[-1].layers
    else:
        there = sum(run.selection.kind == "layer" for run in plan.runs) // len(plan.spec.seeds)
    if wanted <= there:
        return []
    if kind == "middle":
        return [f"{where}: {run.name} needs {counted(wanted, 'layers')}, the model has {there}"]
    which = "trains to the end" if plan.rungs else "has"
    return [f"{where}: {run.name} needs {counted(wanted, 'layer runs')}, the sweep {which} {there}"]


def _output_problems(spec: SweepSpec) -> list[str]:
    """Return reasons why no file can be written to the output; tried with one that is removed again, as is every folder
    made for it."""
    try:
        filesystem, path = resolve_uri(absolute_folder(spec.output))
    except SpecError as error:
        return error.problems
    except (ValueError, ImportError) as error:
        return [f"output: {spec.output}: {error}"]
    unfit = (
        "a chain of filesystems can only be read" if "::" in spec.output and local_path(spec.output) is None else
        "web addresses can only be read" if "http" in filesystem.protocol else
        "what is in memory only one process sees" if "memory" in filesystem.protocol else None
    )  # fmt: skip
    if unfit:
        return [f"output: {spec.output}: {unfit}; name a folder or bucket"]
    folder = path.rstrip("/")
    probe = f"{folder}/.layersweep-{uuid.uuid4().hex}"
    missing = []
    try:
        if not is_object_store(filesystem):  # a bucket is never made: its name may be misspelt
            missing = _missing_folders(filesystem, folder)
            filesystem.makedirs(folder, exist_ok=True)
        filesystem.pipe_file(probe, b"")
        filesystem.rm_file(probe)
    except Exception as error:  # object stores raise classes of their own, often none of OSError's
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        return [f"output: cannot write to {spec.output:.200} ({reason:.200}); name one that you may write to"]
    finally:
        for made in missing:
            with contextlib.suppress(Exception):  # it was never made
                filesystem.rmdir(made)
    return []


def _missing_folders(filesystem: Any, folder: str) -> list[str]:
    """Return the folder and its parents as far as they do not exist, innermost first."""
    missing = []
    while folder and not filesystem.exists(folder):
        missing.append(folder)
        folder = folder.rpartition("/")[0]  # empty where there is no parent
    return missing
