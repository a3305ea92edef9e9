"""Tables that no sweep wrote: an error that names the file, never a traceback. What intervals know of other seeds."""

import numpy as np
import pandas as pd
import pytest

from layersweep.cli import main
from layersweep.orchestrator.report.terminal_table import show_table
from tests.orchestrator.report.test_report import LAST, Page, tables, write  # noqa: F401  a fixture


def changed(name, change):
    """A sweep with one table changed as a frame."""

    def apply(folder):
        path = folder / f"{name}.parquet"
        change(pd.read_parquet(path)).to_parquet(path)

    return apply


def replaced(name, content):
    return lambda folder: (folder / f"{name}.parquet").write_bytes(content)


def a_folder(folder):
    (folder / "steps.parquet").unlink()
    (folder / "steps.parquet").mkdir()


@pytest.mark.parametrize(
    ("spoil", "file", "why"),
    [
        (replaced("contribution", b""), "contribution", "parquet"),
        (replaced("contribution", b"PAR1 and then nothing PAR1"), "contribution", "parquet"),
        (replaced("steps", b"root:x:0:0"), "steps", "parquet"),
        (a_folder, "steps", ""),
        (changed("contribution", lambda t: t[[]]), "contribution", "it lacks selection, kind, score, status"),
        (changed("contribution", lambda t: pd.concat([t, t])), "contribution", "base has more than one row"),
        (changed("contribution", lambda t: t.assign(selection=None)), "contribution", "column selection"),
        (changed("contribution", lambda t: t.assign(kind="[/]")), "contribution", "[/] is no kind of selection"),
        (changed("contribution", lambda t: t.assign(layer=-1)), "contribution", "each single layer has one row"),
        (changed("contribution", lambda t: t.drop(columns="layer")), "contribution", "a number from 0"),
        (changed("contribution", lambda t: t.assign(layer=np.inf)), "contribution", "column layer"),
        (changed("contribution", lambda t: t.assign(score="high")), "contribution", "column score"),
        (changed("contribution", lambda t: t.assign(score=[[1]] * len(t), rank="a")), "contribution", "column"),
        (changed("steps", lambda t: t.assign(selection="layer-99")), "steps", "no row of its selection layer-99"),
        (changed("steps", lambda t: t.assign(step=np.nan)), "steps", "column step"),
        (changed("steps", lambda t: t.assign(selection=None)), "steps", "column selection"),
        (changed("scores", lambda t: pd.concat([t, t])), "scores", "a response is recorded twice"),
        (changed("scores", lambda t: t.assign(score=np.nan)), "scores", "have no score"),
        (changed("scores", lambda t: t.assign(suite=None)), "scores", "column suite"),
        (changed("scores", lambda t: t.drop(columns="prompt")), "scores", "it lacks prompt"),
    ],
)
def test_a_report_of_it_is_refused(tmp_path, tables, capsys, spoil, file, why):  # noqa: F811
    write(tmp_path / "x", *tables)
    spoil(tmp_path / "x")
    assert main(["report", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/x/{file}.parquet: " in said and why in said and said.count("\n") == 1


@pytest.mark.parametrize("name", ["contribution", "steps", "scores"])
def test_columns_of_nothing_and_tables_of_no_rows_are_drawn_without(tmp_path, tables, name):  # noqa: F811
    """All that may be missing is null at once; then there are no rows at all."""
    write(tmp_path / "x", *tables)
    keep = {"contribution": ["selection", "kind", "layer", "score", "status"], "steps": ["selection", "seed", "step"]}
    keep["scores"] = ["selection", "seed", "step", "suite", "split", "prompt", "sample", "score"]
    changed(name, lambda t: t[keep[name]])(tmp_path / "x")
    assert main(["report", str(tmp_path / "x")]) == 0
    for each in ("contribution", "steps", "scores") if name == "contribution" else (name,):
        changed(each, lambda t: t.iloc[:0])(tmp_path / "x")
    assert main(["report", str(tmp_path / "x")]) == 0


def test_with_one_seed_every_headline_says_so(tmp_path, tables, capsys):  # noqa: F811
    runs, steps, scores = tables
    table = write(tmp_path / "one", *tables)
    assert main(["report", str(tmp_path / "one")]) == 0
    page = Page(tmp_path / "one" / "report.html")
    assert page.words.count("one training run each") >= 4  # headline twice, two figures under it
    assert "One training run each: 95 % intervals cover" in page.words
    capsys.readouterr()
    show_table(table)
    assert capsys.readouterr().out.count("one training") == 2  # score and contribution
    again = [frame[frame["selection"] != "base"].assign(seed=1) for frame in (runs, steps, scores)]
    two = write(tmp_path / "two", *(pd.concat([a, b], ignore_index=True) for a, b in zip(tables, again, strict=True)))
    assert main(["report", str(tmp_path / "two")]) == 0
    assert "one training run each" not in Page(tmp_path / "two" / "report.html").words.lower()
    capsys.readouterr()
    show_table(two)
    assert "one training" not in capsys.readouterr().out


def test_layers_are_counted_as_stored(tmp_path, tables):  # noqa: F811
    """Of a model of 28 layers 0 to 3 were scanned; by the last of them it would have 4."""
    runs, steps, scores = tables
    table = write(tmp_path, runs.assign(depth=runs["layer"] / 27), steps, scores, model_layers=28)
    assert table["model_layers"].eq(28).all() and LAST == 6
    assert main(["report", str(tmp_path)]) == 0
    assert "4 of 28" in Page(tmp_path / "report.html").words
