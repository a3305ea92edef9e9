"""Code of the user's own: how it is named, found and loaded, and which files are behind it."""

import sys
from pathlib import Path

import pytest

from layersweep.policies.user_code import load, module_and_name, sources


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with modules that import each other; forgotten afterwards."""
    files = {
        "mine_of_test.py": "import numpy\nimport beside_of_test\nfrom pack_of_test.inner import two\none = lambda: two",
        "beside_of_test.py": "import json, mine_of_test\nvalue = 7",
        "unused_of_test.py": "",
        "pack_of_test/__init__.py": "",
        "pack_of_test/inner.py": "from . import other\nfrom .deep import x\ntwo = other.two",
        "pack_of_test/other.py": "two = 2",
        "pack_of_test/deep/__init__.py": "from ..other import two as x",
        "broken_of_test.py": "def f(:",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a.py:f", ("a.py", "f")),
        ("/x/y/a.py:C.method", ("/x/y/a.py", "C.method")),
        ("a.f", ("a", "f")),
        ("a.b.f", ("a.b", "f")),
        ("a.b:f", ("a.b", "f")),
    ],
)
def test_a_path_names_a_module_and_an_object(path, parts):
    assert module_and_name(path) == parts


@pytest.mark.parametrize("path", ["f", "", "a.py", "a.py:", ":f", "a-b.f", "a.py:f()", "a..f", "http://x/a:f"])
def test_what_names_no_object(path):
    with pytest.raises(ValueError, match="names no object; write it as my_file.py:name, or my_module.name"):
        module_and_name(path)


def test_files_behind_an_object_are_its_imports_from_the_same_folder(here):
    names = ["beside_of_test.py", "mine_of_test.py", "pack_of_test/__init__.py", "pack_of_test/deep/__init__.py",
             "pack_of_test/inner.py", "pack_of_test/other.py"]  # fmt: skip
    for path in ("mine_of_test.one", "mine_of_test.py:one", f"{here}/mine_of_test.py:one"):
        assert list(sources(path)) == names
    inner = ["pack_of_test/__init__.py", "pack_of_test/other.py"]
    assert list(sources("pack_of_test.other.two")) == list(sources("pack_of_test/other.py:two")) == inner
    assert list(sources("broken_of_test.f")) == ["broken_of_test.py"]
    assert set(sources("json.decoder.JSONDecoder")) == {"decoder.py"}  # installed: its own file alone


@pytest.mark.parametrize("path", ["nowhere_of_test.f", "nowhere_of_test.py:f", "json.nowhere.f", "pack_of_test.no.f"])
def test_code_that_is_not_there(here, path):
    with pytest.raises(ValueError, match="no such file|no module"):
        sources(path)


def test_a_file_is_loaded_once_whatever_it_is_called(here):
    """A file named as an installed module is, in two folders, gives two objects."""
    for folder, value in (("a", 1), ("b", 2)):
        (here / folder).mkdir()
        (here / folder / "json.py").write_text(f"value = [{value}]")
    one, other = load("a/json.py:value"), load(f"{here}/b/json.py:value")
    assert (one, other) == ([1], [2]) and load(f"{here}/a/json.py:value") is one
    assert load("json.loads")("3") == 3
    assert load("mine_of_test.py:one")() == 2 and load("mine_of_test.one")() == 2


def test_the_reason_names_the_line(here):
    (here / "late_of_test.py").write_text("x = 1\n\ny = x / 0\n")
    says = "importing late_of_test.py fails: ZeroDivisionError: division by zero (late_of_test.py, line 3)"
    with pytest.raises(ValueError) as error:
        load("late_of_test.py:y")
    assert str(error.value) == says
    with pytest.raises(ValueError, match=r"SyntaxError: invalid syntax \(broken_of_test.py, line 1\)$"):
        load("broken_of_test.py:f")
    with pytest.raises(ValueError, match="mine_of_test.py has no three"):
        load("mine_of_test.py:three")


def test_a_file_that_fails_is_tried_anew(here):
    Path("again_of_test.py").write_text("1 / 0")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        load("again_of_test.py:x")
    Path("again_of_test.py").write_text("x = 5 # now")
    assert load("again_of_test.py:x") == 5
