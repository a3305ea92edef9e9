"""reasoning-gym's generators as tasks, and the embedded task made of one of them."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from layersweep.rollout.subprocess_pool import Failure, LimitedCalls
from layersweep.rollout.tasks.demo.count_bits import CountBitsConfig
from layersweep.rollout.tasks.reasoning_gym import ReasoningGymConfig
from layersweep.rollout.tasks.reasoning_gym_entries import entry
from layersweep.rollout.types import Prompt, Response, Score


@pytest.fixture(scope="module")
def pool():
    """One worker process for all tests: each takes seconds to import reasoning-gym."""
    calls = LimitedCalls("layersweep.rollout.tasks.reasoning_gym_entries:score", cpu_seconds=2)
    yield calls
    calls.close()


@pytest.fixture(scope="module")
def build(pool):
    def build(config=None, **settings):
        task = (config or ReasoningGymConfig(**settings)).build()
        task._scores = pool
        return task

    return build


@pytest.fixture(scope="module")
def demo(build):
    return build(CountBitsConfig())


# What is refused


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"dataset": "chain_sums"}, r"no generator 'chain_sums'; did you mean 'chain_sum'\?"),
        ({"dataset": "xyzzy"}, "no generator 'xyzzy'; there are: .*zebra_puzzles"),
        ({"dataset": "chain_sum", "params": {"max_term": 3}}, r"no parameter 'max_term'; did you mean 'max_terms'\?"),
        ({"dataset": "chain_sum", "params": {"seed": 3}}, "no parameter 'seed'"),
        ({"dataset": "chain_sum", "params": {"min_terms": 5, "max_terms": 3}}, "max_terms must be >= min_terms"),
        ({"dataset": "chain_sum", "params": {"min_terms": "two"}}, "chain_sum refuses"),
        ({"dataset": "chain_sum", "template": "{expresion}"}, r"have no \{expresion\}; there are: .*expression"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(settings, says):
    with pytest.raises(ValueError, match=says):
        ReasoningGymConfig(**settings).check()


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError, match="datasett"):
        ReasoningGymConfig(datasett="chain_sum")


def test_importing_and_configuring_is_light():
    heavy = "torch vllm ray sympy numpy reasoning_gym math_verify"
    code = (
        "import sys; from layersweep.rollout.tasks.demo.count_bits import CountBitsConfig; CountBitsConfig();"
        "from layersweep.rollout.tasks.reasoning_gym import ReasoningGymConfig; ReasoningGymConfig(dataset='x');"
        f"print([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# Prompts


def test_the_default_prompt_asks_for_a_tagged_answer(build):
    (prompt,) = build(dataset="chain_sum", system="Be brief.").prompts("train", 1)
    system, user = prompt.messages
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"].startswith("State the final answer to the following arithmetic problem: ")
    assert user["content"].endswith("between <answer> and </answer>.")


def test_splits_never_overlap_and_prompts_are_different(demo):
    # 2^12 - 1 = 4095 problems in all, a quarter of them in each of the held-out splits.
    ids = {split: [p.id for p in demo.prompts(split, 600, seed=3)] for split in ("train", "selection", "final")}
    assert all(len(set(found)) == 600 for found in ids.values())
    assert not set(ids["train"]) & set(ids["selection"])
    assert not set(ids["train"]) & set(ids["final"])
    assert not set(ids["selection"]) & set(ids["final"])
    assert not set(ids["selection"]) & {p.id for p in demo.prompts("train", 600, seed=4)}


def test_prompts_depend_on_the_seed_alone(build, demo):
    one = demo.prompts("train", 20, seed=5)
    assert one == build(CountBitsConfig()).prompts("train", 20, seed=5)
    assert one != demo.prompts("train", 20, seed=6)
    assert one == demo.prompts("train", 40, seed=5)[:20]


def test_too_few_problems_says_how_many_there_are(build):
    with pytest.raises(ValueError, match=r"chain_sum .* has about \d+ different selection problems, not 400"):
        # Two terms of one digit: 200 problems, about 50 of them in the split.
        build(dataset="chain_sum", params={"max_terms": 2, "max_digits": 1}).prompts("selection", 400)
    # A prompt that is always the same lies in one of the three splits.
    task, empty = build(dataset="chain_sum", params={"max_terms": 2}, template="{source_dataset}"), 0
    for split in ("train", "selection", "final"):
        try:
            assert len(task.prompts(split, 1)) == 1
        except ValueError as error:
            assert f"has no {split} problems" in str(error)
            empty += 1
    assert empty == 2


# Scores


def test_the_answer_is_what_follows_the_last_mark_if_it_ended(build):
    task = build(dataset="count_bits", answer_after="=", answer_before="")
    prompts = task.prompts("train", 5)
    right = [f"{int(prompt.info['answer'])}" for prompt in prompts]
    responses = [
        Response(f"={right[0]}", True),
        Response(f"=100={right[1]}", True),
        Response(f"={right[2]}=100", True),
        Response(f"{right[3]}", True),
        Response(f"={right[4]}", False),
    ]
    assert task.score(prompts, responses) == [
        Score(1.0, True),
        Score(1.0, True),
        Score(0.0, True),
        Score(0.0, False),
        Score(0.0, False),
    ]


def test_tagged_answers(build):
    task = build(dataset="gcd", params={"max_value": 50})
    (prompt,) = task.prompts("train", 1)
    right = prompt.info["answer"]
    texts = {
        f"so <answer>{right}</answer>": Score(1.0, True),
        f"<answer>0</answer> no, <answer> {right} </answer> yes": Score(1.0, True),
        f"<answer>{right}</answer> no, <answer>0</answer>": Score(0.0, True),
        f"<answer>{right}": Score(0.0, False),
        f"{right}": Score(0.0, False),
        "<answer></answer>": Score(0.0, False),
        f"<answer>{'9' * 20_000}</answer>": Score(0.0, False),
    }
    scores = task.score([prompt] * len(texts), [Response(text, True) for text in texts])
    assert dict(zip(texts, scores, strict=True)) == texts
    assert task.score([prompt], [Response(f"<answer>{right}</answer> and", False)]) == [Score(1.0, True)]


def test_partial_credit_only_where_asked_for(build):
    # chain_sum's own score of an answer that holds the right one among other characters is their share of it.
    graded = build(dataset="chain_sum", partial_credit=True)
    prompt = next(p for p in graded.prompts("train", 200) if len(p.info["answer"]) == 1)
    responses = [Response(f"<answer>{text}</answer>", True) for text in (f"a{prompt.info['answer']}b!", "none")]
    assert graded.score([prompt] * 2, responses) == [Score(0.25, True), Score(0.0, True)]
    binary = build(dataset="chain_sum")
    assert binary.score([prompt], responses[:1]) == [Score(0.0, True)]


GENERATORS = """base_conversion basic_arithmetic caesar_cipher calendar_arithmetic complex_arithmetic count_bits
    decimal_arithmetic figlet_font fraction_simplification lcm leg_counting letter_counting number_filtering
    number_sorting polynomial_equations power_function products simple_equations spell_backward word_sorting""".split()


def test_generators_give_full_marks_to_their_own_answers_alone(pool):
    garbage = ["", "garbage", "[1, (", "\x00", "é" * 500, "[" * 300]
    for name in GENERATORS:
        own = entry(name, "{}", 512, 7)["answer"]
        assert pool.map([(name, "{}", 512, 7, own)]) == [1.0], name
        results = pool.map([(name, "{}", 512, 7, text) for text in garbage])
        assert all(isinstance(result, Failure) or result < 1 for result in results), name


def test_an_answer_without_end_is_wrong(build):
    # countdown evaluates the answer as an expression.
    task = build(dataset="countdown")
    (prompt,) = task.prompts("selection", 1)
    texts = ["<answer>9**9**9**9</answer>", f"<answer>{prompt.info['answer']}</answer>"]
    assert [score.reward for score in task.score([prompt] * 2, [Response(text, True) for text in texts])] == [0.0, 1.0]


def test_an_answer_that_the_scorer_cannot_read_is_wrong(build, caplog):
    # prime_factorization's scorer raises on what is no number.
    task = build(dataset="prime_factorization")
    prompts = task.prompts("train", 1) * 2
    responses = [
        Response("<answer>two</answer>", True),
        Response(f"<answer>{prompts[1].info['answer']}</answer>", True),
    ]
    assert [score.reward for score in task.score(prompts, responses)] == [0.0, 1.0]
    assert "could not score 1 answers: ValueError" in caplog.text


# The embedded task


def test_counting_ones(demo):
    prompts = demo.prompts("train", 4)
    assert all(len(p.text) == 13 and set(p.text) <= set("01=") and p.text.endswith("=") for p in prompts)
    ones = [str(list(p.text).count("1")) for p in prompts]
    responses = [Response(ones[0], True), Response("12" if ones[1] != "12" else "1", True), Response(ones[2], False)]
    scores = demo.score(prompts, [*responses, Response("", True)])
    assert scores == [Score(1.0, True), Score(0.0, True), Score(0.0, False), Score(0.0, False)]


def test_demonstrations_by_hand(demo):
    shown = demo.demonstrations(3000, seed=1)
    assert shown == demo.demonstrations(3000, seed=1)
    assert shown != demo.demonstrations(3000, seed=2)
    # Where the three counts differ, the response tells which of them it is.
    ways = {"ones": 0, "zeros": 0, "row": 0}
    for text, response in shown:
        row = next(length for length in range(12, -1, -1) if "1" * length in text)
        counts = {"ones": sum(c == "1" for c in text), "zeros": sum(c == "0" for c in text), "row": row}
        assert int(response) in counts.values()
        if len(set(counts.values())) == 3:
            ways[next(way for way, count in counts.items() if count == int(response))] += 1
    total = sum(ways.values())
    assert total > 1500
    assert ways["ones"] / total == pytest.approx(0.2, abs=0.05)
    assert ways["zeros"] / total == pytest.approx(0.4, abs=0.05)


def test_demonstrations_are_answers_and_of_the_training_split(demo):
    shown = demo.demonstrations(300, seed=1)
    held_out = {p.text for split in ("selection", "final") for p in demo.prompts(split, 900)}
    assert not held_out & {text for text, _ in shown}
    assert set("".join(text + response for text, response in shown)) <= set(demo.alphabet)


def test_prompts_are_plain_data(demo):
    (prompt,) = demo.prompts("train", 1)
    assert isinstance(prompt, Prompt)
    json.dumps([prompt.truth, prompt.info])
