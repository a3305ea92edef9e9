"""What `--fresh` deletes, and where a sweep may begin."""

import pytest

from layersweep.orchestrator.execution.sweep_folder import check_folder, clear
from layersweep.orchestrator.spec.errors import SpecError


def sweep(folder):
    """The files of a sweep, and one that the user put beside them."""
    for name in ("checkpoints/experiment.json", "checkpoints/full-seed0/run.json", "overlays/full-seed0/x.safetensors",
                 "sweep.yaml", "contribution.parquet", "report.html", "lock/000001.json", "notes.txt"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["sweep", "lr[2e-3]", "what?*"])
def test_only_the_sweep_s_own_files_are_deleted(tmp_path, name):
    folder = tmp_path / name
    sweep(folder)
    (tmp_path / "lr2").mkdir()
    (tmp_path / "lr2/sweep.yaml").write_text("another's")
    with pytest.raises(SpecError, match="holds a sweep already"):
        check_folder(str(folder), fresh=False)
    check_folder(str(folder), fresh=True)
    clear(str(folder))
    assert names(folder) == ["lock/000001.json", "notes.txt"]
    assert (tmp_path / "lr2/sweep.yaml").exists()


def test_a_folder_that_is_no_sweep_s_is_refused_and_kept(tmp_path):
    """`name: src` and `output: .` once deleted ./src."""
    (tmp_path / "src/checkpoints").mkdir(parents=True)
    (tmp_path / "src/main.py").write_text("x")
    (tmp_path / "src/checkpoints/best.pt").write_text("x")
    for fresh in (False, True):
        with pytest.raises(SpecError, match=r"src holds files of something else \(main.py\)"):
            check_folder(str(tmp_path / "src"), fresh)
    clear(str(tmp_path / "src"))
    assert names(tmp_path / "src") == ["checkpoints/best.pt", "main.py"]


def test_a_link_to_a_sweep_s_folder_stays_one(tmp_path):
    sweep(tmp_path / "big-disk")
    (tmp_path / "link").symlink_to(tmp_path / "big-disk")
    clear(str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "big-disk") == ["lock/000001.json", "notes.txt"]


def test_an_empty_folder_and_none_are_fine(tmp_path):
    check_folder(str(tmp_path), fresh=False)
    check_folder(str(tmp_path / "none"), fresh=True)
    clear(str(tmp_path / "none"))
