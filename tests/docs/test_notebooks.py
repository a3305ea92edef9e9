"""The notebooks run from their first cell to their last, on the sweeps of docs/results, and are kept without output."""

import importlib.util
import json

import pytest

from .pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def runner():
    """The module by which the site runs them, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("site_notebooks", ROOT / "docs" / "mkdocs" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    cells = runner().run(path)
    assert sum(bool(output) for kind, _, output in cells if kind == "code") >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_output(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


def test_there_are_the_three_of_the_site():
    assert [path.stem for path in NOTEBOOKS] == ["compare-two-sweeps", "read-a-table", "your-own-reward"]
