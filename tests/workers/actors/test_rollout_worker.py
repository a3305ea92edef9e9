"""Named suites: what a rollout worker asks of the engine, the rows it hands over, and the score they add up to."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from layersweep.rollout.config import SuiteConfig
from layersweep.rollout.environments.demo_gridworld import GridWorldConfig
from layersweep.rollout.tasks.demo.sort_digits import SortDigitsConfig
from layersweep.rollout.tasks.math import MathConfig
from layersweep.rollout.tasks.prompts import PromptsConfig
from layersweep.rollout.types import Completions, Prompt, Score
from layersweep.workers.actors.rollout_worker import RolloutWorker
from layersweep.workers.config import TrainingConfig
from layersweep.workers.startup.model_source import ModelSource
from layersweep.workers.startup.tiny_model_training import character_tokenizer
from layersweep.workers.storage.tables import SCORES, STEPS
from tests.helpers.scores import table_of

ALPHABET = "0123456789="
END = 1


class Engine:
    """Answers a prompt of n digits rightly in its first `right[run, n]` samples, and not in the others.

    `generate.remote` is awaited as a Ray actor's method is.
    """

    def __init__(self, tokenizer, right: dict[tuple[str | None, int], int]):
        self.tokenizer, self.right, self.asked = tokenizer, right, []
        self.generate = self

    async def remote(self, run, version, tokens, seeds, sampling):
        self.asked.append((run, version, seeds, sampling))
        written = []
        for prompt in tokens:
            digits = self.tokenizer.decode(prompt).removesuffix("=")
            for sample in range(sampling.samples):
                right = sample < self.right[run, len(digits)]
                answer = "".join(sorted(digits)) if right else "0"
                written.append([*self.tokenizer.encode(answer), END])
        lengths = np.array([len(row) for row in written], np.int32)
        finished = np.ones(len(lengths), bool)
        return Completions(np.concatenate(written).astype(np.int32), np.empty(0), lengths, finished, version)


@pytest.fixture
def tokenizer(tmp_path):
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.save_pretrained(tmp_path / "model")
    return tokenizer


@pytest.fixture
def worker(tokenizer, tmp_path):
    """The suites `four` (40 prompts x 4 samples), `five` (8 x 2) and, greedy by its temperature, `six`."""
    suites = [
        SuiteConfig(name="four", task=SortDigitsConfig(digits=4), prompts=40, final_prompts=10, samples=4),
        SuiteConfig(name="five", task=SortDigitsConfig(digits=5), prompts=8, samples=2, max_response_tokens=9),
        SuiteConfig(name="six", prompts=12, samples=1, temperature=0.0),
    ]
    training = TrainingConfig(max_response_tokens=7)
    return RolloutWorker(ModelSource(str(tmp_path / "model")), SortDigitsConfig(digits=6), suites, training)


def scores(worker, engine, suite, split="selection", run=None, samples=None, greedy=False, seed=0) -> pd.DataFrame:
    version = int(run is not None)
    samples = samples or worker.suites[suite].samples
    columns = asyncio.run(worker.evaluate(engine, run, version, suite, split, seed, samples, greedy))
    return pd.DataFrame(columns).assign(selection=run or "base", seed=seed, step=version)


def test_a_suite_has_its_own_prompts_samples_and_limits(worker, tokenizer):
    engine = Engine(tokenizer, {(None, 4): 3, (None, 5): 1, (None, 6): 1})
    four, five, six = (scores(worker, engine, suite) for suite in ("four", "five", "six"))
    assert [sampling.samples for *_, sampling in engine.asked] == [4, 2, 1]
    assert [sampling.temperature for *_, sampling in engine.asked] == [1.0, 1.0, 0.0]
    assert [sampling.max_tokens for *_, sampling in engine.asked] == [7, 9, 7]
    assert all(sampling.stop_token_ids == (END,) for *_, sampling in engine.asked)
    assert (len(four), len(five), len(six)) == (160, 16, 12)
    assert four["prompt"].nunique() == 40 and set(four["prompt"].str.len()) == {4}
    # Three of four samples are right, one of two, and the greedy one.
    assert four.groupby("prompt")["score"].mean().tolist() == [0.75] * 40
    assert five["score"].tolist() == [1.0, 0.0] * 8 and six["score"].tolist() == [1.0] * 12
    assert four["sample"].tolist() == [0, 1, 2, 3] * 40
    # An answer and its end: right 4 + 1 tokens, wrong 1 + 1, which is no answer of 4 digits.
    assert four["response_tokens"].tolist() == [5, 5, 5, 2] * 40
    assert four["format_ok"].tolist() == [True, True, True, False] * 40
    assert not four["truncated"].any()
    assert four["answer"].tolist()[:3] == ["".join(sorted(four["prompt"][0]))] * 3 and pd.isna(four["answer"][3])
    assert four["counts"].all()


def test_the_evaluation_splits_are_alike():
    """Both hold prompts of every ending that is kept from training: what differs between them is chance."""
    task = SortDigitsConfig().build()
    endings = {split: {p.id[-2:] for p in task.prompts(split, 512)} for split in ("selection", "final", "train")}
    assert endings["selection"] == endings["final"] == {f"{tail:02d}" for tail in range(16)}
    assert not endings["train"] & endings["final"]


def test_splits_share_no_prompt_and_every_run_sees_the_same(worker, tokenizer):
    engine = Engine(tokenizer, {(None, 4): 4, ("layer-02", 4): 4})
    selection = scores(worker, engine, "four")
    other_run = scores(worker, engine, "four", run="layer-02")
    final = scores(worker, engine, "four", "final", samples=16)
    assert selection["prompt"].tolist() == other_run["prompt"].tolist()
    assert len(final) == 160 and final["prompt"].nunique() == 10
    assert set(final["split"]) == {"final"} and not set(final["prompt"]) & set(selection["prompt"])
    (_, _, base_seeds, _), (run, version, run_seeds, _), (*_, final_seeds, _) = engine.asked
    assert (run, version) == ("layer-02", 1)
    assert base_seeds == run_seeds  # common random numbers
    assert not set(base_seeds) & set(final_seeds)


def test_greedy_is_one_answer_beside_the_score(worker, tokenizer):
    engine = Engine(tokenizer, {(None, 4): 1})
    sampled, greedy = scores(worker, engine, "four"), scores(worker, engine, "four", greedy=True)
    assert (engine.asked[1][3].samples, engine.asked[1][3].temperature) == (1, 0.0)
    assert set(greedy["suite"]) == {"four@greedy"} and greedy["prompt"].is_unique
    assert greedy["score"].mean() == 1.0
    # One of four samples is right; the greedy answers, all right, change nothing.
    table = table_of(pd.concat([sampled, greedy]), split="selection").set_index("selection")
    assert table.loc["base", "score"] == 0.25


def test_the_score_is_the_mean_over_suites(worker, tokenizer):
    """base: 1/4 and 0/2; full: 4/4 and 2/2; layer 2: 3/4 and 1/2. Each suite counts once, with 160 rows or 16: S is
    .125, 1 and .625, so C of the layer is (.625 - .125) / (1 - .125) = 4/7."""
    right = {None: (1, 0), "full": (4, 2), "layer-02": (3, 1)}
    engine = Engine(tokenizer, {(run, n): many[n - 4] for run, many in right.items() for n in (4, 5)})
    rows = [scores(worker, engine, suite, run=run) for run in right for suite in ("four", "five")]
    table = table_of(pd.concat(rows), split="selection").set_index("selection")
    assert table["score"].to_dict() == pytest.approx({"base": 0.125, "full": 1.0, "layer-02": 0.625})
    assert table.loc["layer-02", "contribution"] == pytest.approx(4 / 7)
    assert table.loc["base", "prompts"] == 48


def test_questions_of_the_suites_are_kept_out_of_training(tokenizer, tmp_path):
    """One of three training questions stands in a suite's data too, in other words around it."""
    asked = "a farmer has seven sheep and nine goats and sells four of them on monday how many are left"
    training = [asked, "what is one and one", "what is two and two"]
    for name, questions in (("train", training), ("suite", [f"Question: {asked}?", "what is four and four"])):
        lines = [json.dumps({"question": question, "answer": "12"}) for question in questions]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = {"prompt_format": "plain", "selection_share": 0, "final_share": 0}
    task = MathConfig(data=data | {"path": str(tmp_path / "train.jsonl")})
    held_out = MathConfig(data=data | {"path": str(tmp_path / "suite.jsonl"), "selection_share": 1})
    suite = SuiteConfig(name="held-out", task=held_out, prompts=2)
    worker = RolloutWorker(ModelSource(str(tmp_path / "model")), task, [suite], TrainingConfig(prompts_per_step=2))
    assert worker.task.data.report.contaminated == 1
    assert {prompt.text for prompt in worker.task.prompts("train", 2)} == set(training[1:])


def test_prompts_that_the_plan_drops_are_dropped_where_they_are_served(tokenizer, tmp_path):
    """A window of 16 tokens, a character each, leaves 10 beside a response of 6: of 9, 10 and 11 digits 11 go."""
    lines = [json.dumps({"question": "7" * digits, "answer": "1"}) for digits in (9, 10, 11)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = {"path": str(tmp_path / "a.jsonl"), "prompt_format": "plain", "selection_share": 0, "final_share": 0}
    task = MathConfig(data=data | {"overlong_prompts": "drop"})
    training = TrainingConfig(prompts_per_step=2, max_response_tokens=6)
    suite = SuiteConfig(name="none", task=SortDigitsConfig(digits=4), prompts=2)
    source = ModelSource(str(tmp_path / "model"))
    worker = RolloutWorker(source, task, [suite], training, window=16)
    assert {prompt.text for prompt in worker.task.prompts("train", 2)} == {"7" * 9, "7" * 10}
    assert worker.task.data.report.overlong == 1


def test_episodes_end_where_the_window_does(tokenizer, tmp_path):
    """Of a window of 64, a response of 4 leaves 60, and the suite's of 14 leaves 50; its own limit of 40 stays."""
    source, training = ModelSource(str(tmp_path / "model")), TrainingConfig(max_response_tokens=4)
    suite = SuiteConfig(name="maps", prompts=2, max_response_tokens=14)
    for limit, left in ((2048, 50), (40, 40)):
        worker = RolloutWorker(source, GridWorldConfig(max_prompt_tokens=limit), [suite], training, window=64)
        assert worker.task.config.max_prompt_tokens == left


def test_messages_are_rendered_by_the_sources_template_and_arguments(tokenizer, tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if thinking %}={% else %}0{% endif %}"
    for arguments, last in (({"thinking": True}, "="), ({"thinking": False}, "0"), ({}, "0")):
        source = ModelSource(str(tmp_path / "model"), chat_template=template, template_arguments=arguments)
        worker = RolloutWorker(source, SortDigitsConfig(digits=6), [], TrainingConfig())
        prompt = Prompt("p", messages=({"role": "user", "content": "123"},))
        assert worker.encoder.encode(prompt) == tokenizer.convert_tokens_to_ids(["1", "2", "3", last])


def test_responses_without_a_verdict_are_a_column_of_the_steps(worker, tokenizer, monkeypatch):
    """Judging ran out of time on one of each prompt's two responses."""

    def score(prompts, responses):
        return [Score(0.0, True, judged=i % 2 == 0) for i in range(len(responses))]

    monkeypatch.setattr(worker.task, "score", score)
    worker.training = TrainingConfig(max_response_tokens=7, prompts_per_step=3, group_size=2)
    experience = asyncio.run(worker.experience(Engine(tokenizer, {("layer-01", 6): 1}), "layer-01", 0, 0, 0))
    assert experience.metrics == {"unjudged_fraction": 0.5, "overlong_prompts": 0}
    STEPS.check(experience.metrics)


def test_dynamic_sampling_asks_for_further_prompts(worker, tokenizer):
    """No answer is right, so no group has a signal: three rounds of three prompts, of which the first three are used.
    An answer "0" and its end are 2 tokens: 6 groups of 2 responses are left out, 24 tokens."""
    worker.training = TrainingConfig(max_response_tokens=7, prompts_per_step=3, group_size=2)
    worker.max_num_gen_batches = 3
    engine = Engine(tokenizer, {("layer-01", 6): 0})
    experience = asyncio.run(worker.experience(engine, "layer-01", 0, 0, 0))
    assert len(engine.asked) == 3 and len({tuple(seeds) for _, _, seeds, _ in engine.asked}) == 3
    assert experience.metrics["discarded_tokens"] == 24
    assert experience.group.tolist() == [0, 0, 1, 1, 2, 2]
    STEPS.check(experience.metrics)
    # With one answer of two right the first round is enough, and it is the one without dynamic sampling.
    engine = Engine(tokenizer, {("layer-01", 6): 1})
    experience = asyncio.run(worker.experience(engine, "layer-01", 0, 0, 0))
    assert len(engine.asked) == 1 and experience.metrics["discarded_tokens"] == 0
    worker.max_num_gen_batches = 1
    plain = asyncio.run(worker.experience(engine, "layer-01", 0, 0, 0))
    assert np.array_equal(plain.tokens, experience.tokens) and "discarded_tokens" not in plain.metrics


def test_responses_without_a_verdict_are_a_column_of_scores_and_table(worker, tokenizer, monkeypatch):
    """One of each prompt's four responses; full has a verdict on all. The table's share is a mean over prompts."""
    judge, right = worker.suite_tasks["four"].score, {(None, 4): 1, ("full", 4): 4}
    engine = Engine(tokenizer, right)

    def score(prompts, responses):
        return [replace(one, judged=i % 4 != 3) for i, one in enumerate(judge(prompts, responses))]

    full = scores(worker, engine, "four", run="full")
    monkeypatch.setattr(worker.suite_tasks["four"], "score", score)
    base = scores(worker, engine, "four")
    assert base["unjudged"].tolist() == [False, False, False, True] * 40 and not full["unjudged"].any()
    table = table_of(SCORES.frame(pd.concat([base, full])), split="selection").set_index("selection")
    assert table["unjudged_fraction"].to_dict() == {"base": 0.25, "full": 0.0}


class Growing:
    """An endless task whose batch `seed` holds prompts of 9, 10, 11 and 12 digits, none of them in another batch."""

    def prompts(self, split, count, seed=0):
        texts = [str(9 * 10**8 + seed % 10**7) + "0" * (i % 4) for i in range(count)]
        return [Prompt(f"{split}-{text}", text=text, truth="") for text in texts]

    def score(self, prompts, responses):
        return [Score(0.0, True) for _ in responses]


def test_overlong_prompts_of_a_later_batch_give_way_and_are_counted(worker, tokenizer):
    """A window of 16 leaves 10 tokens, a digit each, beside a response of 6. Of the first draw's four two fit, and the
    first two of the second draw take the others' places. Every run gets the same."""
    worker.task, worker.window = Growing(), 16
    worker.training = TrainingConfig(max_response_tokens=6, prompts_per_step=4, group_size=2)
    engine = Engine(tokenizer, dict.fromkeys(((run, n) for run in ("a", "b") for n in (9, 10)), 0))
    batches = [asyncio.run(worker.experience(engine, run, 0, 0, 5)) for run in ("a", "b")]
    assert [batch.metrics["overlong_prompts"] for batch in batches] == [2, 2]
    assert [len(prompt) for prompt in batches[0].prompts] == [9, 9, 10, 10] * 2
    assert all((one == other).all() for one, other in zip(batches[0].prompts, batches[1].prompts, strict=True))
    worker.window = 14  # 8 tokens: nothing fits
    with pytest.raises(ValueError, match="only 0 of 4 train prompts fit the 8 tokens"):
        asyncio.run(worker.experience(engine, "a", 0, 0, 5))


REWARDS = """
def right(solution_str, ground_truth):
    if solution_str == "0" and ground_truth == "19":
        raise ValueError("not a nought")
    return float(solution_str == ground_truth)
def length(solution_str, ground_truth):
    return {"score": len(solution_str), "odd": len(solution_str) % 2}
"""


def test_rewards_of_ones_own_become_columns_and_failures_notices(tokenizer, tmp_path):
    """`19` and `0` answer `91=`, `159` and `0` answer `951=`; the reward is right + 0.1 length, and fails on the first
    wrong one. Base, first sample right: 1.2, lost, 1.3, 0.1."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"question": "91=", "answer": "19"}, {"question": "951=", "answer": "159"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(tmp_path / "rows.jsonl"), "prompt_format": "plain", "selection_share": 0, "final_share": 0,
            "decontaminate_ngram": None}  # fmt: skip
    rewards = [f"{tmp_path}/rewards.py:right", {"path": f"{tmp_path}/rewards.py:length", "weight": 0.1}]
    task = PromptsConfig(data=data, reward=rewards, processes=1)
    suite = SuiteConfig(name="all", prompts=2, samples=2, task=task.model_copy(
        update={"data": task.data.model_copy(update={"selection_share": 1.0})}
    ))  # fmt: skip
    training = TrainingConfig(max_response_tokens=7, prompts_per_step=2, group_size=2)
    worker = RolloutWorker(ModelSource(str(tmp_path / "model")), task, [suite], training)
    engine = Engine(tokenizer, {(None, 2): 1, (None, 3): 1})
    notices, experience = asyncio.run(worker.rollout(engine, None, 0, 0, 0))
    assert sorted(experience.reward.tolist()) == pytest.approx([0, 0.1, 1.2, 1.3])
    assert experience.metrics == {
        "unjudged_fraction": 0.25,
        "overlong_prompts": 0,
        "reward.right": pytest.approx(2 / 3),  # of the three that were judged
        "reward.length": 2.0,
        "reward.length.odd": pytest.approx(2 / 3),
    }
    STEPS.check(experience.metrics)
    [notice] = notices
    assert "rewards.py:right failed on 1 of 4 responses" in notice and "ValueError: not a nought" in notice
    frame = scores(worker, engine, "all").sort_values(["prompt", "sample"])
    SCORES.check(frame.columns)
    lost = frame[frame["unjudged"]]
    assert len(frame) == 4 and lost["score"].tolist() == [0.0] and lost["reward.length"].isna().all()
    assert sorted(frame["score"]) == pytest.approx([0, 0.1, 1.2, 1.3])
    assert sorted(frame["reward.length"].dropna()) == [1, 2, 3]
    assert worker._notices() != [] and worker._notices() == []
    for each in (worker.task, *worker.suite_tasks.values()):
        each.close()


# First batches that sweeps share
