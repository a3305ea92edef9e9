"""Folders of data: splits and subsets in the layouts that people have, and folders that could mean several things."""

import pyarrow
import pyarrow.parquet
import pytest

from layersweep.rollout.data.data_config import DataConfig
from layersweep.rollout.data.data_files import DataError
from tests.helpers.prompt_files import ALL_TRAIN, GOOD, de_facto, jsonl, load, rows_of, written


def test_a_folder_is_read_whole_and_in_any_layout(tmp_path):
    jsonl(tmp_path / "b.jsonl", {"question": "Q1", "answer": "1"}, de_facto("Q2", "2"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["Q3"], "answer": ["3"]}), tmp_path / "a.parquet")
    (tmp_path / "README.md").write_text("not data")
    data = load(str(tmp_path), **ALL_TRAIN)
    assert sorted(p.truth for p in data.prompts("train", 3)) == ["1", "2", "3"]


LAYOUTS = {
    "shards by split": ({"train-0-of-2.parquet": [0], "train-1-of-2.parquet": [1], "test-0-of-1.parquet": [2]}, {}),
    "folders by split": ({"data/train/a.jsonl": [0, 1], "data/test/a.jsonl": [2], "README.md": []}, {}),
    "data folder": ({"data/train-00000.parquet": [0, 1], "data/validation-00000.parquet": [2]}, {}),
    "a name before": ({"gsm8k-train.jsonl": [0, 1], "gsm8k_test.jsonl": [2]}, {}),
    "other spellings": ({"eval.jsonl": [0, 1], "training.jsonl": [2]}, {"split": "test"}),
    "a split of its own": ({"algebra.jsonl": [0, 1], "geometry.jsonl": [2]}, {"split": "algebra"}),
    "no split at all": ({"b.jsonl": [0], "a.parquet": [1]}, {}),
    "subsets": ({"main/train.jsonl": [0, 1], "main/test.jsonl": [2], "socratic/train.jsonl": [3]}, {"subset": "main"}),
    "compressed": ({"a.jsonl.gz": [0], "b.jsonl.zst": [1], "c.jsonl.bz2": []}, {}),
    "metadata, hidden": ({"a.jsonl": [0, 1], "dataset_info.json": [2], ".cache/b.jsonl": [2], "_old/c.csv": [2]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_of_a_folder_the_split_is_read_that_was_asked_for(tmp_path, name):
    """OpenRLHF PR 367, ray #12243. Rows 0 and 1 are meant, others not."""
    files, settings = LAYOUTS[name]
    folder = written(
        tmp_path / "data set", {file: rows_of(*rows) for file, rows in files.items() if file != "README.md"}
    )
    (folder / "README.md").write_text("no data")
    data = load(str(folder), **settings, **ALL_TRAIN)
    assert sorted(data.questions("train")) == ["Q0", "Q1"]


REFUSED_LAYOUTS = {
    "test alone": (["test.jsonl"], {}, r"data\.split: .* has no train files; there are test"),
    "no such split": (["train.jsonl", "test.jsonl"], {"split": "validation"}, r"data\.split: .*no validation files"),
    "no split named": (["a.jsonl"], {"split": "test"}, r"data\.split: no file of .* names a split \(a\.jsonl\)"),
    "unknown split": (["train.jsonl"], {"split": "algebra"}, r"data\.split: no file of .* names 'algebra'"),
    "some name a split": (["train.jsonl", "more.jsonl"], {}, r"data\.split: .*others that do not, such as more\.jsonl"),
    "two splits in a name": (["train_test.jsonl"], {}, r"data\.split: train_test\.jsonl .* names the splits train and"),
    "two folders": (["main/a.jsonl", "socratic/a.jsonl"], {}, r"data\.subset: .* has data in main, socratic"),
    "no such subset": (["main/a.jsonl"], {"subset": "socratic"}, r"data\.subset: .* has no 'socratic'; .* main"),
    "beside inner folders": (["a.jsonl", "old/a.jsonl"], {}, r"data\.subset: .*the folder itself, old"),
    "another format": (["a.jsonl", "b.xlsx"], {}, r"data\.path: .* holds b\.xlsx, which cannot be read: .*\.gz"),
    "another compression": (["a.jsonl", "b.jsonl.xz"], {}, r"data\.path: .* holds b\.jsonl\.xz, which cannot be read"),
    "compressed parquet": (["a.jsonl", "b.parquet.gz"], {}, r"data\.path: .* holds b\.parquet\.gz"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_LAYOUTS)
def test_folders_that_could_mean_several_things_are_refused(tmp_path, name):
    files, settings, says = REFUSED_LAYOUTS[name]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    with pytest.raises(DataError, match=says):
        DataConfig(path=str(tmp_path), **settings).files()


def test_a_linked_file_is_read_and_a_linked_folder_is_not_passed_over(tmp_path):
    """The hub's cache is made of links to files; a link to a folder would be left out without a word."""
    kept = written(tmp_path / "kept", {"blob": rows_of(0, 1)})
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(kept / "blob")
    assert load(str(folder), **ALL_TRAIN).report.train == 2
    (folder / "more").symlink_to(kept)
    with pytest.raises(DataError, match="holds more, which cannot be read"):
        DataConfig(path=str(folder)).files()


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"split": "test"}, r"data\.split: .*a\.jsonl is one file"),
        ({"subset": "main"}, r"data\.subset: .*a\.jsonl is one file"),
    ],
)
def test_one_file_has_neither_splits_nor_subsets(tmp_path, settings, says):
    jsonl(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError, match=says):
        DataConfig(path=str(tmp_path / "a.jsonl"), **settings).files()
