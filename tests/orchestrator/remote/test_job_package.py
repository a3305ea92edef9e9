"""Package of a submitted sweep: what travels, what is refused, and what is named as left out."""

import os
import socket
import stat
import zipfile
from pathlib import Path

import pytest
import yaml

from layersweep.cli import DEMO
from layersweep.orchestrator.remote.job_package import job_environment, job_package
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.factorial import sweeps_of
from layersweep.orchestrator.spec.load import load_spec, parse_spec
from layersweep.orchestrator.spec.paths import with_absolute_paths
from layersweep.policies.user_code import load, sources


@pytest.fixture
def folder(tmp_path):
    """A user's folder below `tmp_path`."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "algorithm.py").write_text("x = 1")
    return folder


def packed(folder, **options) -> dict[str, bytes]:
    """The content of a package by name, without the code and the spec."""
    with job_package(load_spec(DEMO), str(folder), **options) as path, zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name != "sweep.yaml" and not name.startswith("layersweep/")]
        return {name: archive.read(name) for name in names}


def test_code_spec_and_folder_travel(folder, tmp_path):
    spec = with_absolute_paths(load_spec(DEMO))
    with job_package(spec, str(folder)) as path:
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "out")
    assert not os.path.exists(os.path.dirname(path))
    assert load_spec(str(tmp_path / "out" / "sweep.yaml")) == spec
    for file in (
        "algorithm.py",
        "layersweep/cli.py",
        "layersweep/__init__.py",
        "layersweep/workers/actors/trainer.py",
        "layersweep/orchestrator/report/page.html.j2",
        "layersweep/deploy/sweeps/demo.yaml",
    ):
        assert Path(tmp_path / "out", file).is_file(), file
    assert not list((tmp_path / "out").rglob("__pycache__"))
    assert not (tmp_path / "out" / "layersweep" / "orchestrator" / "api").exists()


def test_equal_content_makes_equal_packages(folder):
    """So that Ray uploads it once, whatever the files' times."""
    packages = []
    for moment in (1e9, 1.5e9):
        os.utime(folder / "algorithm.py", (moment, moment))
        with job_package(load_spec(DEMO), str(folder)) as path:
            packages.append(Path(path).read_bytes())
    assert packages[0] == packages[1]


def test_ignore_files_drop_nothing(folder):
    (folder / ".gitignore").write_text("data/\n*.jsonl\n")
    (folder / ".rayignore").write_text("*\n")
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("{}")
    assert set(packed(folder)) == {".gitignore", ".rayignore", "algorithm.py", "data/train.jsonl"}


def test_modes_are_their_owners_alone(folder):
    (folder / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "tool.sh").chmod(0o755)
    (folder / "algorithm.py").chmod(0o644)
    with job_package(load_spec(DEMO), str(folder)) as path, zipfile.ZipFile(path) as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert stat.S_IMODE(modes["tool.sh"]) == 0o700
    assert stat.S_IMODE(modes["algorithm.py"]) == 0o600
    assert {mode & 0o077 for mode in modes.values()} == {0}


SECRET = [".env", ".env.local", "id_rsa", "id_ed25519.pub", "server.pem", "tls.key", ".netrc"]
SECRET_FOLDERS = [".ssh", ".git", ".venv", "__pycache__", ".aws"]


def test_secrets_and_caches_are_left_out_and_named(folder, capsys):
    for name in SECRET:
        (folder / name).write_text("secret")
    for name in SECRET_FOLDERS:
        (folder / name).mkdir()
        (folder / name / "config").write_text("secret")
    (folder / "src").mkdir()
    (folder / "src" / ".env").write_text("secret")
    (folder / "environment.py").write_text("x = 1")
    assert set(packed(folder)) == {"algorithm.py", "environment.py"}
    said = capsys.readouterr().err
    assert said.startswith(f"--working-dir {folder}: left out ") and len(said.splitlines()) == 1
    assert said.endswith(" and 5 more\n")  # of 13, 8 are named


def test_each_thing_left_out_is_named(folder, capsys):
    os.symlink("nowhere", folder / "dangling")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # a socket's path must be short
        listener.bind("socket")
        os.chdir(here)
        (folder / "src").mkdir()
        os.symlink("..", folder / "src" / "up")
        (folder / ".env").write_text("secret")
        os.symlink("../.env", folder / "src" / "settings")
        (folder / "back\\slash").write_text("x")
        assert set(packed(folder)) == {"algorithm.py"}
    said = capsys.readouterr().err
    for part in (
        ".env,",
        "dangling (links to nothing)",
        "pipe (neither file nor folder)",
        "socket (neither file nor folder)",
        "src/up (links to a folder that holds it)",
        "src/settings (links to .env)",
        "(a zip file cannot hold this name)",
    ):
        assert part in said, part


def test_links_within_the_folder_travel_as_copies(folder):
    (folder / "data").mkdir()
    (folder / "data" / "a.txt").write_text("text")
    os.symlink("data", folder / "latest")
    os.symlink("../algorithm.py", folder / "data" / "link.py")
    (folder / "empty").mkdir()
    assert packed(folder) == {
        "algorithm.py": b"x = 1",
        "data/a.txt": b"text",
        "data/link.py": b"x = 1",
        "latest/a.txt": b"text",
        "latest/link.py": b"x = 1",
        "empty/": b"",
    }


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "/etc"])
def test_links_that_leave_the_folder_are_refused(folder, tmp_path, target):
    (tmp_path / "outside").write_text("secret")
    (folder / "src").mkdir()
    os.symlink(target if target.startswith("/") else f"../{target}", folder / "src" / "link")
    with pytest.raises(SpecError, match=r"src/link links to /.*, outside of it"):
        packed(folder)


def test_a_folder_by_a_link_of_its_own_is_taken(folder, tmp_path):
    os.symlink(folder, tmp_path / "link")
    assert set(packed(tmp_path / "link")) == {"algorithm.py"}


@pytest.mark.parametrize("name", ["layersweep", "sweep.yaml"])
def test_a_folder_that_would_hide_the_code_is_refused(folder, name):
    (folder / name).mkdir()
    with pytest.raises(SpecError, match=f"its {name} would hide"):
        packed(folder)


def test_no_folder(tmp_path):
    with pytest.raises(SpecError, match="no such folder"):
        packed(tmp_path / "none")


def test_a_package_that_is_too_large_names_what_makes_it_so(folder):
    """8 MiB of noise and 3 MiB of it; zeros do not count for much, packed."""
    (folder / "data").mkdir()
    for name, size in (("large.bin", 8), ("small.bin", 3)):
        (folder / "data" / name).write_bytes(os.urandom(size << 20))
    with pytest.raises(SpecError) as error:
        packed(folder, most_bytes=6 << 20)
    assert "less than 6 MiB, packed" in str(error.value)
    assert "the largest are data/large.bin (8.0 MiB), data/small.bin (3.0 MiB), " in str(error.value)
    (folder / "data" / "large.bin").write_bytes(bytes(64 << 20))
    assert len(packed(folder, most_bytes=6 << 20)) == 3


def test_output_means_the_same_in_a_job(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    spec = load_spec(DEMO)  # output: runs
    assert with_absolute_paths(spec).output == f"{tmp_path}/runs"
    assert with_absolute_paths(spec.model_copy(update={"output": "s3://bucket/runs"})).output == "s3://bucket/runs"


def test_environment_variables(monkeypatch):
    monkeypatch.setenv("HERE", "a=b")
    assert job_environment(["HERE", "X=1=2", "Y="]) == {"HERE": "a=b", "X": "1=2", "Y": ""}
    with pytest.raises(SpecError, match="--env GONE: not set here; write GONE=VALUE"):
        job_environment(["GONE"])


# Code of the user's own


def own_code(folder: Path):
    """A spec with a reward, two folders away from each other, and a task as a module of the working folder."""
    (folder / "rewards.py").write_text("from beside import x\ndef score(solution_str): return x")
    (folder / "beside.py").write_text("x = 1.0")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "rewards.py").write_text("def other(solution_str): return 0.0")
    (folder / "tasks_of_mine.py").write_text("class Mine: ...")
    rewards = ["rewards.py:score", {"path": "elsewhere/rewards.py:other", "name": "b"}]
    task = {"type": "prompts", "data": {"path": "/data/rows.jsonl", "prompt_format": "plain"}, "reward": rewards}
    suite = {"name": "a", "task": {"type": "custom", "path": "tasks_of_mine.Mine"}}
    return parse_spec(yaml.safe_load(open(DEMO)) | {"task": task, "evaluation": {"suites": [suite]}})


def unpacked(spec, working_dir: str | None, out: Path):
    """The spec in a package, and the names of the files beside it and the code."""
    with job_package(with_absolute_paths(spec, working_dir), working_dir) as path, zipfile.ZipFile(path) as archive:
        archive.extractall(out)
        names = [name for name in archive.namelist() if name != "sweep.yaml" and not name.startswith("layersweep/")]
    return load_spec(str(out / "sweep.yaml")), sorted(names)


def test_rewards_and_tasks_travel_with_what_they_import(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    spec, names = unpacked(own_code(folder), None, tmp_path / "out")
    assert names == [
        "tasks_of_mine.py", "user_code/0/beside.py", "user_code/0/rewards.py", "user_code/1/rewards.py"
    ]  # fmt: skip
    assert [reward.path for reward in spec.task.reward] == [
        "user_code/0/rewards.py:score",
        "user_code/1/rewards.py:other",
    ]
    assert spec.evaluation.suites[0].task.path == "tasks_of_mine.Mine"
    assert "takes along tasks_of_mine.py, beside.py, rewards.py, rewards.py" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "out")  # as the job does
    there = with_absolute_paths(spec)
    assert there.task.reward[0].path == f"{tmp_path}/out/user_code/0/rewards.py:score"
    assert list(sources(there.task.reward[0].path)) == ["beside.py", "rewards.py"]


def test_what_the_working_folder_has_travels_once(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    spec, names = unpacked(own_code(folder), str(folder), tmp_path / "out")
    assert names == ["algorithm.py", "beside.py", "elsewhere/rewards.py", "rewards.py", "tasks_of_mine.py"]
    assert [reward.path for reward in spec.task.reward] == ["rewards.py:score", "elsewhere/rewards.py:other"]


def test_code_that_is_not_there_does_not_travel(folder, monkeypatch):
    monkeypatch.chdir(folder)
    spec = own_code(folder)
    (folder / "tasks_of_mine.py").unlink()
    with pytest.raises(SpecError, match=r"evaluation\.suites\[0\]\.task\.path: tasks_of_mine\.Mine: no module"):
        with job_package(with_absolute_paths(spec), None):
            pass


def test_a_file_of_a_package_travels_with_its_package(folder, tmp_path, monkeypatch):
    """Its relative imports work there too."""
    files = {"mine/__init__.py": "", "mine/words.py": "x = 3", "mine/inner/__init__.py": "",
             "mine/inner/rewards.py": "from ..words import x\ndef score(solution_str): return x"}  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    task = {"type": "prompts", "data": {"path": "/data/rows.jsonl"}, "reward": "mine/inner/rewards.py:score"}
    spec, names = unpacked(parse_spec(yaml.safe_load(open(DEMO)) | {"task": task}), None, tmp_path / "out")
    assert names == sorted(f"user_code/0/{name}" for name in files)
    assert spec.task.reward[0].path == "user_code/0/mine/inner/rewards.py:score"
    assert load(f"{tmp_path}/out/{spec.task.reward[0].path}")("") == 3


def test_code_of_levels_travels(folder, tmp_path, monkeypatch):
    """Two rewards as levels of a factor: both files travel, and both sweeps find theirs there."""
    monkeypatch.chdir(folder)
    spec = own_code(folder)
    named = {"one": "rewards.py:score", "other": "elsewhere/rewards.py:other"}
    factors = {"task.reward": {name: [path] for name, path in named.items()}}
    spec, names = unpacked(spec.model_copy(update={"factors": factors}), None, tmp_path / "out")
    files = {name for name in names if name.startswith("user_code/")}
    found = {sweep.name: sweep.task.reward[0].path for sweep in sweeps_of(spec)}
    assert list(found) == ["demo-one", "demo-other"]
    for path, name in zip(found.values(), ("score", "other"), strict=True):
        file, _, function = path.partition(":")
        assert file in files and function == name
    assert (tmp_path / "out" / found["demo-other"].partition(":")[0]).read_text().startswith("def other")
