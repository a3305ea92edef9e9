"""`layersweep compare`: what it reads, prints and writes."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import layersweep
from layersweep.cli import main
from layersweep.orchestrator.commands.compare import load_profiles
from layersweep.workers.storage.files import write_atomically
from layersweep.workers.storage.tables import BY_SUITE
from tests.helpers.specs import demo
from tests.orchestrator.report.test_report import Page

RISING = np.linspace(0.1, 1.0, 12)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setitem(os.environ, "COLUMNS", "200")


def ours(folder, contribution, noise=0.02):
    """A sweep's folder with a contribution table."""
    count = len(contribution)
    folder.mkdir(parents=True)
    pd.DataFrame(
        {
            "selection": ["base", "full", *(f"layer-{k:02d}" for k in range(count))],
            "kind": ["base", "full", *["layer"] * count],
            "layer": pd.array([None, None, *range(count)], dtype="Int64"),
            "depth": [np.nan, np.nan, *(np.arange(count) / (count - 1))],
            "contribution": [0, 1, *contribution],
            "contribution_sd": [np.nan, np.nan, *[noise] * count],
        }
    ).to_parquet(folder / "contribution.parquet")
    return str(folder)


def lines(text, *words):
    """The printed lines that hold all the words."""
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_two_sweeps_that_agree_and_a_page_of_it(tmp_path, capsys):
    paths = [ours(tmp_path / "one", RISING), ours(tmp_path / "two", RISING[::-1] * -1 + 2)]
    assert main(["compare", *paths, "--top", "3", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    (row,) = lines(printed, "one and two")
    assert "1.00" in row and "agree" in row and "3 of 3 (chance 0.8)" in row  # 3 * 3 / 12
    assert "share of the top 3" in printed and "Gini" in printed
    page = Page(tmp_path / "out" / "compare.html")
    assert page.sections == {"profiles", "pairs", "variance", "concentration"} and page.references == ["data:,"]
    assert not re.search(r"https?://", page.source) and "one and two: agree" in page.words
    assert (tmp_path / "out" / "compare.png").stat().st_size > 5000
    assert str(tmp_path / "out" / "compare.html") in printed


def test_gains_by_suite_beside_the_agreement(tmp_path, capsys):
    """Of sweeps with several suites: the full run's gain, the best layer's C, and who forgot most."""
    paths = [ours(tmp_path / "one", RISING), ours(tmp_path / "two", RISING)]
    known = {"split": "selection", "step": 10, "seeds": 1}
    rows = [
        known | {"selection": name, "kind": kind, "layer": layer, "suite": suite, "counts": counts, "score": score,
                 "gain": gain, "gain_low": gain - 0.01, "gain_high": gain + 0.01, "contribution": c,
                 "contribution_low": c - 0.1, "contribution_high": c + 0.1}
        for suite, counts, base, full, best in (("math", True, 0.25, 0.5, 0.4), ("code", False, 0.5, -0.1, np.nan))
        for name, kind, layer, score, gain, c in (
            ("base", "base", None, base, np.nan, 0.0), ("full", "full", None, base + full, full, 1.0),
            ("layer-03", "layer", 3, base + best * full, best * full, best),
            ("layer-04", "layer", 4, base - 0.05, -0.05, -0.05 / full if counts else np.nan),
        )
    ]  # fmt: skip
    with open(tmp_path / "one" / "contribution_by_suite.parquet", "wb") as file:
        BY_SUITE.write(BY_SUITE.frame(rows), file)
    assert main(["compare", *paths, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    (math,), (code,) = lines(printed, "math", "one"), lines(printed, "code (not in S)")
    assert all(text in math for text in ("0.250", "0.500", "layer-03", "0.40", "layer-04 −0.050"))
    assert all(text in code for text in ("0.500", "−0.100", "−0.110 to −0.090", "full −0.100"))
    page = Page(tmp_path / "out" / "compare.html")
    assert "suites" in page.sections and "code (not in S)" in page.words
    (tmp_path / "one" / "contribution_by_suite.parquet").write_bytes(b"no table")
    assert main(["compare", *paths]) == 2
    assert "contribution_by_suite.parquet: cannot be read as parquet" in capsys.readouterr().err


def test_unequal_numbers_of_optimizer_steps_are_said(tmp_path, capsys):
    """Twelve layers: 30 steps each in one; 28 to 30 in two. Tables of one number alike say nothing."""
    paths = [ours(tmp_path / name, RISING) for name in ("one", "two", "three")]
    for path, counts in zip(paths, ([30] * 12, [28, *[30] * 11], [30] * 12), strict=True):
        file = Path(path) / "contribution.parquet"
        table = pd.read_parquet(file)
        table["optimizer_steps"] = pd.array([None, 60, *counts], dtype="Int64")
        table.to_parquet(file)
    assert main(["compare", paths[0], paths[1]]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "took unequal numbers of optimizer steps: 30 in one, 28 to 30 in two." in words
    assert "whether the specs ask for it or batches were left out" in words
    assert main(["compare", paths[0], paths[2]]) == 0
    assert "optimizer steps" not in capsys.readouterr().out


def test_opposite_noisy_and_unknown(tmp_path, capsys):
    rng = np.random.default_rng(0)
    paths = [
        ours(tmp_path / "up", RISING),
        ours(tmp_path / "down", RISING[::-1]),
        ours(tmp_path / "noise", rng.normal(0, 0.3, 12), noise=0.3),
    ]
    table = tmp_path / "other.csv"
    pd.DataFrame({"layer": range(24), "score": np.linspace(3, 4, 24)}).to_csv(table, index=False)
    assert main(["compare", *paths, str(table), "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "disagree" in lines(printed, "up and down")[0] and "-1.00" in lines(printed, "up and down")[0]
    assert "cannot tell" in lines(printed, "up and noise")[0]
    (row,) = lines(printed, "up and other")  # 24 layers against 12, aligned by relative depth
    assert "1.00" in row and "noise unknown" in row and "--noise" in printed
    assert "noise-corrected Spearman" in printed and "observed Spearman" in printed  # the matrices
    assert "matrix" in Page(tmp_path / "out" / "compare.html").sections
    assert main(["compare", paths[0], str(table), "--noise", "0.01"]) == 0
    assert "agree" in lines(capsys.readouterr().out, "up and other")[0]


def test_layers_that_a_search_stopped_are_left_out(tmp_path, capsys):
    """Of twelve rising contributions the last four are 0 in a table where they were pruned: 8 layers remain, in the
    same order in both."""
    one, two = ours(tmp_path / "one", RISING), ours(tmp_path / "two", np.where(np.arange(12) < 8, RISING, 0.0))
    table = pd.read_parquet(f"{two}/contribution.parquet")
    table["status"] = ["completed"] * 10 + ["pruned"] * 4
    table.to_parquet(f"{two}/contribution.parquet")
    assert main(["compare", one, two, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    (row,) = lines(printed, "one and two")
    assert re.search(r"\b8\b.*\b1\.00\b", row)
    note = "Left out are the layers that a search stopped early (4 of two)"
    assert note in " ".join(printed.split()) and note in Page(tmp_path / "out" / "compare.html").words
    assert load_profiles([one, two])[1].model_layers == 12
    table["status"] = ["completed"] * 5 + ["pruned"] * 9  # base, full and three layers: no shape to draw
    table.to_parquet(f"{two}/contribution.parquet")
    assert main(["compare", one, two, "-o", str(tmp_path / "out")]) == 0
    page = Page(tmp_path / "out" / "compare.html")
    assert "Not drawn, with fewer than four layers that trained to the end: two." in page.words
    assert page.source.count('class="run" data-run="two"') == 0 < page.source.count('class="run" data-run="one"')


def test_names_that_clash_are_told_apart(tmp_path):
    paths = [ours(tmp_path / name / "demo", RISING) for name in ("a", "b")]
    assert [profile.name for profile in load_profiles(paths)] == ["a/demo", "b/demo"]
    pulled = []
    for name in ("a", "b"):
        pulled.append(str(tmp_path / name / "x.parquet"))
        (Path(tmp_path) / name / "demo" / "contribution.parquet").rename(pulled[-1])
    assert [profile.name for profile in load_profiles(pulled)] == ["a/x", "b/x"]


def test_the_folder_of_several_sweeps_is_all_that_have_a_table(tmp_path, capsys):
    """Of three sweeps the last has not begun; a fourth table is beside them."""
    folder = tmp_path / "demo"
    for name in ("grpo", "gspo"):
        ours(folder / f"demo-{name}", RISING)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(demo(factors={"algorithm": ["grpo", "gspo", "rloo"]})))
    assert main(["compare", f"{folder}/"]) == 0
    assert "demo-grpo and demo-gspo" in capsys.readouterr().out
    agreement = layersweep.compare(folder, ours(tmp_path / "other", RISING))
    assert sorted(agreement[["a", "b"]].itertuples(index=False, name=None)) == [
        ("demo-grpo", "demo-gspo"), ("demo-grpo", "other"), ("demo-gspo", "other")
    ]  # fmt: skip
    (folder / "demo-gspo" / "contribution.parquet").unlink()
    assert main(["compare", str(folder)]) == 2 and "at least two tables" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        (["one"], "at least two"),
        (["one", "nowhere"], "no such table"),
        (["one", "one/contribution.parquet"], "more than once"),
        (["one", "bad.csv"], "no column `layer`"),
        (["one", "text.txt"], "neither a .parquet nor a .csv"),
        (["one", "broken.parquet"], "broken.parquet"),
        (["one", "words.csv"], "words.csv: column `score`"),
        (["one", "half.csv"], "half.csv: half has a layer 1.5; layers are whole numbers from 0"),
        (["one", "negative.csv"], "negative.csv: negative has a layer -1; layers are whole numbers from 0"),
        (["one", "unscored.csv"], "unscored.csv: unscored has a layer -2; layers are whole numbers from 0"),
        (["one", "pruned.parquet"], "pruned.parquet: pruned has a layer -1.0; layers are whole numbers from 0"),
        (["one", "infinite.csv"], "infinite.csv: infinite has a layer inf; layers are whole numbers from 0"),
        (["one", "named.csv"], "named.csv: named has a layer 'first'; layers are whole numbers from 0"),
        (["one", "few.csv"], "few.csv: few says that the model has 2 layers, and names layer 3"),
        (["one", "endless.csv"], "endless.csv: endless says that the model has inf layers"),
        (["one", "foo://x.csv"], "foo://x.csv: "),
        (["one", "memory://nothing/x.csv"], "memory://nothing/x.csv: no such table"),
        (["one", "file://one"], "more than once"),
        (["one", "twice.csv"], "twice.csv: twice has more than one column `layer`"),
        (["one", "bytes.csv"], "bytes.csv"),
        (["one", "empty.csv"], "empty.csv"),
        (["one", "lists.parquet"], "lists.parquet: column `contribution`"),
    ],
)
def test_bad_input(tmp_path, capsys, monkeypatch, tables, why):
    ours(tmp_path / "one", RISING)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "text.txt").write_text("")
    (tmp_path / "broken.parquet").write_text("nothing of the kind")
    (tmp_path / "words.csv").write_text("layer,score\n1,high\n")
    (tmp_path / "half.csv").write_text("layer,score\n1.5,2\n")
    (tmp_path / "twice.csv").write_text("layer,Layer,score\n1,1,2\n")
    (tmp_path / "bytes.csv").write_bytes(b"layer,score\n\xff\xfe,2\n")
    (tmp_path / "empty.csv").write_text("")
    pd.DataFrame({"layer": [1], "contribution": [[1, 2]]}).to_parquet(tmp_path / "lists.parquet")
    (tmp_path / "negative.csv").write_text("layer,score\n0,1\n-1,2\n")
    (tmp_path / "unscored.csv").write_text("layer,score\n0,1\n-2,\n")
    (tmp_path / "infinite.csv").write_text("layer,score\n0,1\ninf,2\n")
    (tmp_path / "named.csv").write_text("layer,score\nbase,0\n0,1\nfirst,2\n")
    (tmp_path / "few.csv").write_text("layer,score,model_layers\n0,1,2\n3,2,2\n")
    (tmp_path / "endless.csv").write_text("layer,score,model_layers\n0,1,inf\n")
    pd.DataFrame({"layer": [0.0, -1.0], "contribution": [1.0, 2.0], "status": ["completed", "pruned"]}).to_parquet(
        tmp_path / "pruned.parquet"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *tables]) == 2
    assert why in capsys.readouterr().err


def test_tables_may_be_at_uris(tmp_path, capsys):
    """A sweep in a store, a CSV there, and a folder here in two spellings of its path."""
    one, two = ours(tmp_path / "one", RISING), ours(tmp_path / "two", RISING)
    write_atomically("memory://compare/three/contribution.parquet", lambda file: file.write(
        Path(two, "contribution.parquet").read_bytes()))  # fmt: skip
    csv = pd.DataFrame({"layer": range(12), "contribution": RISING}).to_csv(index=False)
    write_atomically("memory://compare/four.csv", lambda file: file.write(csv.encode()))
    locations = [one, f"file://{two}", "memory://compare/three", "memory://compare/four.csv"]
    assert [profile.name for profile in load_profiles(locations)] == ["one", "two", "three", "four"]
    assert main(["compare", *locations]) == 0
    assert "1.00" in lines(capsys.readouterr().out, "one and three")[0]
    assert main(["compare", "memory://compare/three", "memory://compare/three/contribution.parquet"]) == 2
    assert "more than once" in capsys.readouterr().err


def test_top_must_be_a_count(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "a", "b", "--top", "0"])
    assert "whole number above 0" in capsys.readouterr().err
