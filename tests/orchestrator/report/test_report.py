"""The report: one file that needs nothing else, whatever there is of a sweep; what single-layer models solve."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from layersweep.cli import main
from layersweep.orchestrator.report import write_report
from layersweep.orchestrator.report.chart import axis_number, axis_range, ticks
from layersweep.orchestrator.statistics.contribution_table import sweep_table
from layersweep.orchestrator.statistics.early_signals import early_signals
from layersweep.orchestrator.statistics.solved_prompts import solved_overlap
from layersweep.workers.storage.tables import CONTRIBUTION, SCORES, STEPS
from tests.helpers.tables import selections_in

SECTIONS = {
    *(
        "profile",
        "table",
        "final",
        "sampling",
        "gain",
        "learning",
        "health",
        "overlap",
        "signals",
        "cost",
        "unfinished",
    ),
    "base-success",
}
KINDS = {"base": "base", "full": "full"} | {f"layer-{k:02d}": "layer" for k in range(4)} | {"layers-best-2": "layers"}
LAST = 6
METRICS = [name for name, kind in STEPS.types.items() if kind == "float64"]
COLUMNS = (
    *("selection", "seed", "step", "suite", "split", "prompt", "sample"),
    *("score", "response_tokens", "truncated", "format_ok"),
)


@pytest.fixture(scope="module")
def tables():
    """Runs, steps and scores of a sweep over 4 layers: 40 prompts, 4 samples, the final split for three selections."""
    rng = np.random.default_rng(0)
    rates = dict(zip(KINDS, (0.2, 0.8, 0.3, 0.6, 0.7, 0.25, 0.85), strict=True))
    layer_of = {name: int(name[-2:]) if kind == "layer" else None for name, kind in KINDS.items()}
    runs = [
        {
            "selection": name, "seed": 0, "kind": kind, "layer": layer_of[name], "layers": None,
            "depth": None if layer_of[name] is None else layer_of[name] / 3,
            "trainable_parameters": {"base": 0, "full": 1000}.get(kind, 100),
            "learning_rate": None if kind == "base" else 1e-3, "seconds": 9.0, "status": "completed", "reason": None,
        }
        for name, kind in KINDS.items()
    ]  # fmt: skip
    steps = [
        dict.fromkeys(METRICS, 0.25) | {
            "selection": name, "seed": 0, "step": step, "reward_mean": rates[name] * (step + 1) / LAST,
            "entropy": 0.9 - 0.1 * step, "tokens": 100, "pushed_bytes": 4 * (1000 if name == "full" else 100),
        }
        for name in KINDS if name != "base" for step in range(LAST)
    ]  # fmt: skip
    scores = [
        (name, 0, 0 if name == "base" else LAST, "suite", split, f"{split}-{prompt}", sample, float(right), 20, cut,
         True)
        for name, rate in rates.items()
        for split in (("selection", "final") if name in ("base", "full", "layer-02") else ("selection",))
        for prompt in range(40)
        for sample, (right, cut) in enumerate(zip(rng.random(4) < rate, rng.random(4) < 0.1, strict=True))
    ]  # fmt: skip
    return pd.DataFrame(runs), STEPS.frame(steps), SCORES.frame(pd.DataFrame(scores, columns=COLUMNS))


def write(folder, runs, steps, scores, model_layers=4):
    """A sweep's folder with its three tables; returns the contribution table."""
    folder.mkdir(parents=True, exist_ok=True)
    constants = {
        "sweep": "tiny-sweep",
        "model": "tiny",
        "algorithm": "grpo",
        "task": "sort_digits",
        "model_layers": model_layers,
    }
    table = sweep_table(constants, runs, steps, scores)
    for schema, frame in ((CONTRIBUTION, table), (STEPS, steps), (SCORES, scores)):
        with open(folder / f"{schema.name}.parquet", "wb") as file:
            schema.write(frame, file)
    return table


class Page(HTMLParser):
    """The text, sections, references and rows of a page."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.sections, self.references, self.open, self.text, self.rows, self.sorts = set(), [], [], [], {}, {}
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "section":
            self.sections.add(attributes["id"])
        self.references += [attributes[name] for name in ("src", "href", "srcset", "action") if attributes.get(name)]
        if tag == "tr" and "data-run" in attributes:
            self.row = self.rows.setdefault(attributes["data-run"], [])
        if tag not in ("meta", "link", "br", "line", "circle", "rect", "path", "polyline"):
            self.open.append(tag)
        if tag == "td" and "data-sort" in attributes and self.rows:
            self.sorts.setdefault(next(reversed(self.rows)), []).append(attributes["data-sort"])

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text.append(data)
        if "tr" in self.open and self.rows:
            self.row.append(data.strip())

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def test_the_page_is_whole_and_needs_nothing_else(tmp_path, tables):
    runs, steps, scores = (frame.copy() for frame in tables)
    runs.loc[3, ["status", "reason"]] = "failed", "OutOfMemoryError: <b>no room</b>"
    scores = scores[scores["selection"] != "layer-01"]
    table = write(tmp_path, runs, steps, scores).set_index("selection")
    assert [path.rsplit("/", 1)[1] for path in write_report(str(tmp_path))] == [
        "report.html",
        "profile.png",
        "report.png",
        "contribution_by_base_success.parquet",
    ]
    page = Page(tmp_path / "report.html")
    assert page.sections == SECTIONS
    assert page.references == ["data:,"] and not page.open  # an empty icon; every element is closed
    assert not re.search(r"https?://|@import|url\(|<link[^>]+stylesheet|<script[^>]+src", page.source)
    assert page.source.count("<svg") > 15
    for name, row in table.iterrows():
        assert name in page.rows
        for column, digits in (("contribution", 2), ("score", 3)):
            if pd.notna(row[column]):
                assert f"{row[column]:.{digits}f}".replace("-", "−") in page.rows[name]
    assert {len(cells) for cells in page.sorts.values()} == {20}
    best = table.loc["layer-02"]
    assert f"Layer 2 alone recovers {100 * best['contribution']:.0f} %" in page.words
    assert "another RL seed may differ" in page.words  # what the intervals cover
    assert "overstates itself" in page.words and f"{best['final_contribution']:.2f}" in page.words
    assert "OutOfMemoryError: <b>no room</b>" in page.words and "<b>no room" not in page.source
    assert "prefers-color-scheme: dark" in page.source and "max-width: 640px" in page.source
    for name in ("profile.png", "report.png"):
        with Image.open(tmp_path / name) as image:
            image.verify()


def test_several_samples_and_suites_out_of_domain(tmp_path, tables):
    """A second suite does not count: every run is right half as often there as the base, so all forgot. pass@1 of the
    final split is its score; votes need answers."""
    runs, steps, scores = (frame.copy() for frame in tables)
    steps["kl"] = np.where(steps["step"] == LAST - 1, np.nan, 0.0125)
    steps["kl"] = steps["kl"].where(steps["selection"] != "full")
    other = scores[scores["split"] == "selection"].assign(suite="elsewhere", counts=False)
    other["score"] = np.where(other["selection"] == "base", 1.0, (other["sample"] < 2).astype(float))
    scores["answer"] = np.where(scores["score"] == 1, "7", "8")
    table = write(tmp_path, runs, steps, pd.concat([scores, other], ignore_index=True)).set_index("selection")
    write_report(str(tmp_path))
    page = Page(tmp_path / "report.html")
    assert page.sections == SECTIONS | {"suites"}
    assert "Out of domain 6 of 6 selections lost more than their noise explains" in page.words
    assert "−0.500 ( −0.500 to −0.500 )" in page.words.replace("(", "( ").replace(")", " )")
    assert "0.0125" in page.words and "elsewhere not in S" in page.words
    assert "On the final split, a mean over suites" in page.words
    for measure in ("pass@1", "pass@2", "pass@4", "maj@1", "maj@2", "maj@4"):
        assert measure in page.words
    assert page.words.count(f"{table.loc['layer-02', 'final_score']:.3f}") >= 3  # the table's, pass@1, maj@1
    assert "The full run's gain over the base: pass@1" in page.words
    assert "one seed says nothing of how runs differ" in page.words


def test_a_kl_that_nothing_measured_is_not_drawn(tmp_path, tables):
    runs, steps, scores = (frame.copy() for frame in tables)
    for kl, shown in ((np.nan, False), (0.0, True)):
        write(tmp_path, runs, steps.assign(kl=kl), scores)
        write_report(str(tmp_path))
        assert ("KL to the base" in Page(tmp_path / "report.html").words) is shown


def keep(selections, splits=("selection", "final"), status="running"):
    """A sweep of which only some selections are scored."""

    def change(runs, steps, scores):
        runs.loc[~runs["selection"].isin(selections), "status"] = status
        return runs, steps, scores[scores["selection"].isin(selections) & scores["split"].isin(splits)]

    return change


def no_gain(runs, steps, scores):
    """The full run as good as the base."""
    base = scores[scores["selection"] == "base"]
    return runs, steps, pd.concat([scores[scores["selection"] != "full"], base.assign(selection="full", step=LAST)])


def pruned(runs, steps, scores):
    """Layers 0 and 3 stopped after 2 of 6 steps."""
    stopped = ["layer-00", "layer-03"]
    runs.loc[runs["selection"].isin(stopped), ["status", "reason"]] = "pruned", "pruned at step 2"
    scores.loc[scores["selection"].isin(stopped), "step"] = 2
    return runs, steps[~steps["selection"].isin(stopped) | (steps["step"] < 2)], scores


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda runs, steps, scores: (runs, steps.iloc[:0], scores.iloc[:0]), "No layer has been scored yet"),
        (keep(["base"]), "No layer has been scored yet"),
        (keep(["base", "layer-00", "layer-02"]), "No contribution can be computed: no full run"),
        (keep(["base", "full", "layer-02"], ("selection",)), "Nothing is scored on the final split yet"),
        (no_gain, "gained nothing that its noise could not explain"),
        (pruned, "A search stopped 2 of 4 layers early."),
        # 2 + 6 + 6 + 2 of 4 x 6 steps: a third is saved
        (pruned, "The search trained 16 layer steps; training all 4 layers to step 6 would have taken 24: 33 % saved"),
    ],
)
def test_partial_tables(tmp_path, tables, change, said):
    write(tmp_path, *change(*(frame.copy() for frame in tables)))
    write_report(str(tmp_path))
    page = Page(tmp_path / "report.html")
    scored = pd.read_parquet(tmp_path / "scores.parquet")
    assert page.sections == SECTIONS - (set() if len(scored) else {"base-success"}) and said in page.words


def test_a_table_alone(tmp_path, tables, capsys):
    write(tmp_path / "sweep", *tables)
    table = tmp_path / "pulled.parquet"
    (tmp_path / "sweep" / "contribution.parquet").rename(table)
    assert main(["report", str(table)]) == 0
    page = Page(tmp_path / "pulled-report" / "report.html")
    assert "No training step is recorded with this table" in page.words
    assert str(tmp_path / "pulled-report" / "profile.png") in capsys.readouterr().out
    for wrong, why in (("nowhere", "no such table"), ("sweep/steps.parquet", "not a contribution table")):
        assert main(["report", str(tmp_path / wrong)]) == 2
        assert why in capsys.readouterr().err


def answers(**rights):
    """Scores of one prompt's responses per character: 1 right, 0 wrong; prompts are separated by blanks."""
    rows = []
    for name, given in rights.items():
        selection = name.replace("_", "-")
        for prompt, samples in enumerate(given.split()):
            for sample, right in enumerate(samples):
                step = 0 if name == "base" else 8
                rows.append((selection, 0, step, "s", "selection", f"p{prompt}", sample, float(right), 5, False, True))
    return pd.DataFrame(rows, columns=COLUMNS)


def solved(scores):
    """The overlap of selections that are what their names say."""
    return solved_overlap(scores, selections_in(scores))


def test_overlap_on_hand_made_numbers():
    """Solved (at least one of two responses right): layer 0 {0, 1, 2}, layer 1 {1, 2, 3}, layer 2 {0, 1}, base {0}.

    Jaccard 2/4, 2/3, 1/4; beyond the base {1, 2}, {1, 2, 3}, {1}: 2/3, 1/2, 1/3. Votes, response by response: right
    where at least two of three are: 1/2 of prompt 0 (10, 00, 11), all of 1 (11, 11, 10: 3 and 2 of 3), of prompt 2
    (10, 11, 00) the first, of prompt 3 (00, 11, 00) none.
    """
    found = solved(answers(base="10 00 00 00", layer_00="10 11 10 00", layer_01="00 11 11 11", layer_02="11 10 00 00"))
    assert found.layers == ["layer-00", "layer-01", "layer-02"]
    assert found.jaccard.to_numpy() == pytest.approx(np.array([[1, 0.5, 2 / 3], [0.5, 1, 0.25], [2 / 3, 0.25, 1]]))
    beyond = found.beyond_base.to_numpy()
    assert beyond[np.triu_indices(3, 1)] == pytest.approx([2 / 3, 1 / 2, 1 / 3])
    assert found.majority == pytest.approx((0.5 + 1 + 0.5 + 0) / 4)
    assert found.members.tolist() == pytest.approx([4 / 8, 6 / 8, 3 / 8])
    assert found.solved.to_dict() == pytest.approx({"any": 1.0, "all": 0.25, "base": 0.25})


def test_overlap_needs_two_layers_at_the_same_step():
    two = answers(layer_00="1 0", layer_01="0 0")
    assert math.isnan(solved(answers(layer_00="0 0", layer_01="0 0")).jaccard.iloc[0, 1])
    assert solved(two).jaccard.iloc[0, 1] == 0
    assert math.isnan(solved(two).beyond_base.iloc[0, 1])  # no base: nothing is known to be beyond it
    two.loc[two["selection"] == "layer-01", "step"] = 4  # pruned
    assert solved(two) is None and solved(two.iloc[:0]) is None


def test_axes():
    assert ticks(-0.3, 1.2, 4) == [0, 0.5, 1] and ticks(0, 30, 4) == [0, 10, 20, 30]
    assert [axis_number(v) for v in (0, 0.25, -1200, 3e6, 2e-5)] == ["0", "0.25", "−1.2k", "3M", "2e-5"]
    assert axis_range([1, 3, math.inf, math.nan], margin=0.5) == (0, 4) and axis_range([]) != (0, 0)


def test_early_signals_on_hand_made_numbers():
    """C rises with the layer. First gradient norms fall: -1. Their agreements are in the order 3, 1, 2, 4, 5: squared
    rank differences 4 + 1 + 1, rho 1 - 6 * 6 / (5 * 24) = 0.7. Rewards of the first step (10 % of 10 steps) are in the
    order 2, 1, 3, 4, 5: squared rank differences 1 + 1, rho 0.9; later ones are in order. Tables of earlier versions
    have no agreement."""
    names = [f"layer-{k:02d}" for k in range(5)]
    table = pd.DataFrame({"selection": names, "kind": "layer", "status": "completed", "contribution": range(5)})
    first, agreement = [2, 1, 3, 4, 5], [0.3, 0.1, 0.2, 0.4, 0.5]
    steps = pd.DataFrame(
        [
            {
                "selection": name,
                "step": step,
                "grad_norm": -k if step == 0 else 7.0,
                "gradient_agreement": agreement[k] if step == 0 else np.nan,
                "reward_mean": r if step == 0 else 9 * k,
            }
            for k, (name, r) in enumerate(zip(names, first, strict=True))
            for step in range(10)
        ]
    )
    found = early_signals(table, steps)
    assert [signal.spearman for signal in found] == pytest.approx([-1, 0.7, 0.9, 1, 1])
    earlier = early_signals(table, steps.drop(columns="gradient_agreement"))
    assert [signal.spearman for signal in earlier] == pytest.approx([-1, 0.9, 1, 1])
    assert found[0].by_chance == pytest.approx(1.96 / 2, abs=0.001)
    three = table.assign(status=["completed"] * 3 + ["pruned"] * 2)
    stopped = early_signals(three, steps[(steps["selection"] != names[4]) | (steps["step"] < 1)])
    assert all(signal.layers == 3 and math.isnan(signal.spearman) for signal in stopped)  # too few to say
    # Layer 4 stopped after the first step: it has both gradients and the reward of that step, no later one's.
    assert [pd.notna(signal.values[names[4]]) for signal in stopped] == [True, True, True, False, False]
    assert early_signals(table, steps[:0]) == []


def test_success_by_category():
    """Base solves 1 of 2 of `pick` and none of `heat`; full, at its last step, 2 of 2 and 1 of 2. Greedy answers and
    the final split do not count."""
    from layersweep.orchestrator.report.findings import categories
    from layersweep.orchestrator.report.results import Results

    rows = [
        ("base", 0, "s", "selection", "pick", 1), ("base", 0, "s", "selection", "pick", 0),
        ("base", 0, "s", "selection", "heat", 0), ("full", 5, "s", "selection", "heat", 0),
        ("full", 9, "s", "selection", "pick", 1), ("full", 9, "s", "selection", "pick", 1),
        ("full", 9, "s", "selection", "heat", 1), ("full", 9, "s", "selection", "heat", 0),
        ("full", 9, "s@greedy", "selection", "heat", 0), ("full", 9, "s", "final", "heat", 0),
    ]  # fmt: skip
    scores = pd.DataFrame(rows, columns=["selection", "step", "suite", "split", "category", "score"])
    table = pd.DataFrame({"selection": ["base", "full"], "kind": ["base", "full"]})
    names, found = categories(Results(table, pd.DataFrame(), scores, ""))
    assert names == ["heat", "pick"]
    assert found == [{"selection": "base", "values": [0.0, 0.5]}, {"selection": "full", "values": [0.5, 1.0]}]
