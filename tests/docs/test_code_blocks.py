"""Every code block and command of README and docs: run where that takes seconds, else held against what it names.

Files and commands of docs/bring-your-own are in test_bring_your_own_pages.
"""

import ast
import inspect
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

import layersweep
from layersweep.arguments import make_parser
from layersweep.cli import main
from layersweep.orchestrator.spec.load import load_spec
from layersweep.orchestrator.spec.overrides import is_override, parse_overrides
from layersweep.orchestrator.spec.sweep_spec import SweepSpec

from .pages import PAGES, ROOT, blocks, commands

COMMANDS = [(page, words) for page in PAGES for words in commands(page)]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BASE = {
    "name": "base",
    "model": "somewhere",
    "task": {"type": "prompts", "data": {"path": "x.jsonl"}, "reward": "r.py:f"},
}

LM_EVAL = "serving.md"
"""Page whose YAML is lm-eval's."""


def program(words: list[str]) -> str:
    """Name the program of a command, without the environment that it is in."""
    return re.sub(r"^(\.venv|env)/bin/", "", words[0])


def ours(name: str) -> list[tuple[Path, list[str]]]:
    return [(page, words) for page, words in COMMANDS if program(words) == name]


def label(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else " ".join(value)


def test_commands_are_found():
    counts = {name: len(ours(name)) for name in ("layersweep", "make", "pip", "python")}
    assert counts["layersweep"] > 60 and counts["make"] > 15 and counts["pip"] > 8 and counts["python"] >= 10, counts


@pytest.mark.parametrize(("page", "words"), ours("layersweep"), ids=label)
def test_a_command_is_one(page, words):
    """Command, options and overrides are known, and files of this repository are there."""
    arguments, rest = make_parser().parse_known_args(words[1:])
    given = [word for word in (*getattr(arguments, "words", ()), *rest) if is_override(word)]
    assert not [word for word in rest if not is_override(word)]
    parse_overrides(given)
    for word in words[1:]:
        assert not re.match(r"(deploy|docs|tests)/", word) or (ROOT / word).exists(), word


def runnable() -> list[list[str]]:
    """Arguments of the commands that need no sweep, network or cluster: each once."""
    found = []
    for page, words in ours("layersweep"):
        files = [word for word in words[2:] if re.search(r"\.(yaml|parquet)$|/", word) and not is_override(word)]
        named = all((ROOT / file).exists() for file in files)
        plain = words[1] in ("plan", "data", "schema", "report", "compare", "doctor") and "bring-your-own" not in str(
            page
        )
        if plain and named and (files or words[1] in ("schema", "doctor")) and words[1:] not in found:
            found.append(words[1:])
    return found


@pytest.mark.parametrize("words", runnable(), ids=label)
def test_a_command_runs(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    if words[0] in ("report", "compare"):
        shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(words) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(("page", "words"), ours("make"), ids=label)
def test_a_target_is_in_the_makefile(page, words):
    assert set(words[1:]) <= TARGETS


@pytest.mark.parametrize(("page", "words"), ours("python") + ours("python3"), ids=label)
def test_a_module_that_is_run_is_there(page, words):
    if "-m" not in words or (module := words[words.index("-m") + 1]) in ("pytest", "venv", "http.server", "json.tool"):
        files = [word for word in words[1:] if word.startswith("tests/")]
        assert all((ROOT / file).exists() for file in files)
        return
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.parametrize(("page", "words"), ours("pip"), ids=label)
def test_what_pip_is_given_is_there(page, words):
    for word in words:
        for extras in re.findall(r"(?:^\.|layersweep)\[([\w,]+)\]$", word):
            assert set(extras.split(",")) <= set(EXTRAS), word
        if word.endswith(".whl"):
            assert f"layersweep-{PROJECT['version']}-py3" in word
        if word.endswith(".lock"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if b.page.name != LM_EVAL], ids=lambda block: block.id)
def test_yaml_is_a_spec_or_a_part_of_one(block, tmp_path, monkeypatch):
    """A whole spec loads; a part loads within one that is whole: of the spec's own fields, or of its task's."""
    for file in blocks("python"):
        if file.name:
            (tmp_path / file.name).write_text(file.text)
    monkeypatch.chdir(tmp_path)
    part = yaml.safe_load(block.text)
    if not part.keys() >= {"name", "model", "task"}:
        inner = not part.keys() <= SweepSpec.model_fields.keys()
        part = BASE | ({"task": BASE["task"] | part} if inner else part)
    load_spec(part)


@pytest.mark.parametrize("block", [b for b in blocks("python") if b.name is None], ids=lambda block: block.id)
def test_python_calls_what_there_is(block):
    """Blocks start sweeps or ask a server, so they are not run: they parse, and what they call of layersweep takes
    these arguments."""
    calls = [node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func).startswith("layersweep.")]
    assert ours or "layersweep" not in block.text
    for call in ours:
        function = getattr(layersweep, call.func.attr)
        inspect.signature(function).bind(*call.args, **{keyword.arg: keyword.value for keyword in call.keywords})
    methods = [call.func.attr for call in calls if ast.unparse(call.func).startswith("sweep.")]
    assert all(hasattr(layersweep.RunningSweep, name) for name in methods)


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page):
    """Files of the repository; pages that the site makes are looked for by the site's own build."""
    made = ("reference/", "notebooks/", "cluster.md", "benchmarks.md", "contributing.md", "changelog.md", "tests.md")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        inside = (page.parent / target).resolve()
        if "://" in target or inside.exists():
            continue
        assert str(inside.relative_to(ROOT / "docs")).startswith(made), target


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_files_that_are_named_exist(page):
    folders = "deploy|docs|orchestrator|policies|rollout|tests|workers"
    for name in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\w", page.read_text()):
        if name.startswith("docs/results/gpu.md"):  # what the first check on a GPU will write
            continue
        assert (page.parent / name).exists() or (ROOT / name).exists(), name
