"""The site: it builds without a warning, loads nothing from elsewhere, and a workflow publishes it."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from .pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; where what it is built with is installed (`make docs`)."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    config = ["--config-file", str(ROOT / "docs" / "mkdocs" / "mkdocs.yml")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*command, *config], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return target


def test_nothing_is_loaded_from_elsewhere(site):
    """Scripts, styles, pictures and fonts; links may lead anywhere."""
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]+src="([^"]+)"', page.read_text())
        loaded += re.findall(
            r'<link[^>]+rel="(?:stylesheet|preload|icon|preconnect)"[^>]+href="([^"]+)"', page.read_text()
        )
        assert loaded and not [target for target in loaded if "//" in target and not target.startswith("data:")], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", style.read_text())


def test_what_is_made_of_the_code_is_there(site):
    """A field, a command, a function and a column that nobody wrote down in docs/."""
    for page, words in {
        "reference/spec/training.html": "Gradients are scaled down to this global L2 norm",
        "reference/commands.html": "have a submitted sweep write its checkpoints",
        "reference/python.html": "Merge a run's weights into its base model",
        "reference/tables.html": "contribution_untruncated",
        "cluster.html": "kubectl apply -f deploy/kuberay/storage.yaml",
    }.items():
        text = re.sub(r"<[^>]+>", "", (site / page).read_text())
        assert words.lower() in " ".join(text.replace("&#39;", "'").split()).lower(), page


def test_the_workflow_builds_by_make_and_publishes():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert "make docs" in [step.get("run") for step in steps]
    assert [step["with"]["path"] for step in steps if "upload-pages-artifact" in step.get("uses", "")] == ["site"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert (citation["title"], citation["version"], citation["license"]) == tuple(
        project[name] for name in ("name", "version", "license")
    )
