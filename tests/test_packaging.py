"""The distribution: pyproject's lists against the tree, and a wheel that works in an empty environment."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("orchestrator", "workers", "rollout", "policies", "deploy")


def setuptools_table() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def package_of(folder: Path) -> str:
    """`layersweep.orchestrator.spec` for orchestrator/spec; `layersweep` itself for orchestrator/api."""
    name = ".".join(("layersweep", *folder.relative_to(ROOT).parts))
    return name.replace("layersweep.orchestrator.api", "layersweep")


def test_every_package_of_the_tree_is_listed():
    folders = {path.parent for package in CODE for path in (ROOT / package).rglob("*.py")}
    assert sorted(map(package_of, folders)) == sorted(setuptools_table()["packages"])
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_every_data_file_of_the_tree_is_listed():
    """Whatever lies beside the modules of the four code packages, and the presets."""
    listed = {
        path
        for package, patterns in setuptools_table()["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.removeprefix("layersweep.").replace(".", "/")).glob(pattern)
    }
    there = {
        path
        for package in CODE[:4]
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert listed == there | set((ROOT / "deploy" / "sweeps").iterdir())


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """An empty environment into which the tree's wheel is installed, as the README says, without its dependencies."""
    wheels, target = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("environment")
    source = tmp_path_factory.mktemp("source") / "layersweep"
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *CODE, "pyproject.toml", "README.md",
                              "LICENSE"], cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run([*pip, *build], check=True, timeout=300)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (top_level,) = (name for name in archive.namelist() if name.endswith("top_level.txt"))
        assert archive.read(top_level).decode().split() == ["layersweep"]
    venv.create(target)
    install = ["--python", str(target / "bin" / "python"), "install", "--no-deps", "--no-compile", str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=300)
    return target


def site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))


def run(installed: Path, program: str, *arguments: str) -> str:
    """Standard output of a program of the environment, started elsewhere. It sees the packages that these tests run on,
    but not the layersweep among them: an editable install is a hook, which PYTHONPATH does not bring."""
    there = [path for path in sys.path if path.endswith("site-packages") and not (Path(path) / "layersweep").exists()]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(there), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(installed / "bin" / program), *arguments]
    done = subprocess.run(command, env=env, cwd=installed.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_install_leaves_nothing_else_at_the_top(installed):
    entries = {path.name for path in site_packages(installed).iterdir()}
    assert {name for name in entries if not name.endswith(".dist-info")} == {"layersweep"}
    where = "import layersweep, layersweep.policies as p; print(layersweep.__file__); print(p.__file__)"
    for line in run(installed, "python", "-c", where).splitlines():
        assert line.startswith(str(installed))


@pytest.mark.slow
def test_the_command_works_from_there(installed):
    assert "layersweep run" in run(installed, "layersweep", "--help")
    assert run(installed, "python", "-m", "layersweep", "schema").startswith("name\n")
    assert "21 to train" in run(installed, "layersweep", "plan")


@pytest.mark.slow
def test_users_folders_may_bear_our_folders_names(installed, tmp_path):
    """A user's own `workers` and `policies` are imported as such beside layersweep."""
    for name in CODE:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {', '.join(CODE)}, layersweep.cli as c; "
    code += f"assert all(module.mine for module in ({', '.join(CODE)})); c.main(['plan'])"
    assert "21 to train" in run(installed, "python", "-c", code)
