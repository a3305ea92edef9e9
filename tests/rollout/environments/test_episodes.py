"""The multi-turn loop, with a model that a function writes and an environment that misbehaves on command."""

import asyncio
import logging
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from layersweep.policies.algorithms.gigpo import GiGPO
from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.algorithms.loss import LossTokens, token_weights
from layersweep.policies.model.tree_batch import pack
from layersweep.rollout.environments.base import InitialState
from layersweep.rollout.environments.demo_gridworld import GridWorldConfig
from layersweep.rollout.environments.episodes import play, read_action
from layersweep.rollout.types import Completions, stable_seed
from tests.helpers.hostile_environment import CounterConfig
from tests.helpers.scripted import Model, decode, encode_prompt, played

PLAIN = "{turn}:{observation}"


def episodes(config, starts, samples, write, scope=()):
    with closing(config.build()) as task:
        return played(task, [InitialState(f"s{seed}", seed) for seed in starts], samples, Model(write), scope)


def in_turn(*scripts, starts=("s0",)):
    """The n-th trajectory of a start state writes the n-th script, a word a turn; also when it is played anew."""
    words = {
        stable_seed(start, sample, turn, losses): word
        for start in starts
        for sample, script in enumerate(scripts)
        for turn, word in enumerate(script)
        for losses in (0, 1)
    }
    return lambda prompt, seed: words[seed]


def test_rows_of_an_experience_by_hand():
    config = CounterConfig(template=PLAIN, goal=2, invalid_action_penalty=0.25)
    done = episodes(config, [4, 5], 2, in_turn(["add", "add"], ["dance", "add", "add"], starts=("s4", "s5")))
    rows = done.experience()
    assert rows.group.tolist() == [0] * 5 + [1] * 5
    assert rows.trajectory.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert rows.step.tolist() == [0, 1, 0, 1, 2] * 2
    assert rows.anchor == ["4:0", "4:1", "4:0", "4:0", "4:1", "5:0", "5:1", "5:0", "5:0", "5:1"]
    assert rows.reward.tolist() == [0, 1, -0.25, 0, 1] * 2
    assert rows.format_ok.tolist() == [True, True, False, True, True] * 2
    assert rows.lengths.tolist() == [3, 3, 5, 3, 3] * 2
    assert decode(rows.prompts) == ["1:at 0", "2:at 1", "1:at 0", "2:at 0", "3:at 1"] * 2
    assert "".join(map(chr, rows.tokens)) == "addadddanceaddadd" * 2
    assert rows.logprobs.tolist() == [-0.5] * 34 and rows.version == 4
    assert not rows.truncated.any()
    # Step groups: 4:0 three times, 4:1 twice, and the same for 5.
    assert rows.metrics == {
        "success_rate": 1.0,
        "episode_length": 2.5,
        "invalid_action_rate": 0.2,
        "step_groups_larger_than_one": 1.0,
        "lost_episodes": 0,
        "given_up_episodes": 0,
        "cut_observations": 0,
    }
    # GiGPO, gamma .5: returns 1 and .75: +-.125. To go: .5, 1 and 0, .5, 1 (-.25 + .25, 0 + .5).
    # 4:0 has .5, 0, .5 (mean 1/3), 4:1 has 1, 1.
    advantages = GiGPO(gamma=0.5).advantages(rows.reward, rows.group, rows.trajectory, rows.step, rows.anchor)
    sixth = 1 / 6
    np.testing.assert_allclose(
        advantages, [0.125 + sixth, 0.125, -0.125 - 2 * sixth, -0.125 + sixth, -0.125] * 2, atol=1e-6
    )
    # The same rows under GRPO: every step has its episode's advantage, +-.125 over a std of .1768.
    plain = GRPO().advantages(rows.reward, rows.group, rows.trajectory, rows.step, rows.anchor)
    np.testing.assert_allclose(plain, ([0.7071] * 2 + [-0.7071] * 3) * 2, atol=1e-4)


def test_scores_of_an_evaluation():
    config = CounterConfig(goal=2, max_turns=3)
    done = episodes(config, [4, 5], 2, in_turn(["add", "add"], ["wait", "dance", "wait"], starts=("s4", "s5")))
    scores = {name: column.tolist() for name, column in vars(done.scores()).items()}
    assert scores == {
        "prompt": ["s4", "s4", "s5", "s5"],
        "sample": [0, 1, 0, 1],
        "score": [1.0, 0.0, 1.0, 0.0],
        "response_tokens": [6, 13, 6, 13],
        "truncated": [False, True, False, True],
        "format_ok": [True, False, True, False],
        "answer": [None] * 4,
        "category": ["even", "even", "odd", "odd"],
        "losses": [0, 0, 0, 0],
        "unjudged": [False, False, False, False],
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"template": "{history}{observation}?"}, ["at 0?", "at 1?", "at 2?"]),
        (
            {"template": "{history}{observation}?", "history": "window", "window": 1},
            ["at 0?", "at 0\n> add\nat 1?", "at 1\n> add\nat 2?"],
        ),
        (
            {"template": "{history}{observation}?", "history": "whole", "turn_template": "{observation}/{action};"},
            ["at 0?", "at 0/add;at 1?", "at 0/add;at 1/add;at 2?"],
        ),
        ({"template": "{turn} {observation} {actions}"}, ["1 at 0 add, wait", "2 at 1 add, wait", "3 at 2 add, wait"]),
    ],
)
def test_prompts_follow_the_template(settings, expected):
    done = episodes(CounterConfig(**settings), [0], 1, lambda prompt, seed: "add")
    assert decode([turn.prompt for turn in done.episodes[0].turns]) == expected


def test_templates_are_checked():
    with pytest.raises(ValidationError, match=r"template: no \{x\} to fill in; there are actions, history, obs"):
        CounterConfig(template="{x}")
    with pytest.raises(ValidationError, match="cannot show the history: whole"):
        CounterConfig(history="whole", template="{observation}")


def test_actions_are_read_as_configured():
    whole, tag = CounterConfig(), CounterConfig(action="tag")
    assert [read_action(whole, text) for text in (" add\n", "  ")] == ["add", None]
    assert read_action(tag, "<think>x</think><action>wait</action> no: <action>\nadd </action>") == "add"
    assert [read_action(tag, text) for text in ("add", "<action>add", "<action> </action>")] == [None] * 3


def test_an_unreadable_response_is_an_invalid_action():
    config = CounterConfig(action="tag", max_turns=2)
    turns = episodes(config, [0], 1, lambda prompt, seed: "add").episodes[0].turns
    assert [(turn.action, turn.valid, turn.anchor) for turn in turns] == [(None, False, "0:0")] * 2
    assert [turn.reward for turn in turns] == [-0.1, -0.1]


def test_episodes_stop_at_their_limits():
    # By the environment, by turns, by tokens of the prompt ("at 0" is 4, "at 0> add at 1" longer).
    stopped = episodes(CounterConfig(template=PLAIN), [0], 1, in_turn(["add", "stop"])).episodes[0]
    assert (len(stopped.turns), stopped.terminated, stopped.success) == (2, False, 0.0)
    turns = episodes(CounterConfig(max_turns=5), [0], 1, lambda prompt, seed: "wait").episodes[0]
    assert (len(turns.turns), turns.terminated) == (5, False)
    config = CounterConfig(template="{history}{observation}", history="whole", max_prompt_tokens=15)
    tokens = episodes(config, [0], 1, lambda prompt, seed: "add").episodes[0]
    assert (len(tokens.turns), tokens.terminated) == (2, False)  # 4, 15, 26


def test_sampling_seeds_depend_on_start_sample_and_turn_alone():
    asked = []

    def write(prompt, seed):
        asked.append(seed)
        return "add"

    episodes(CounterConfig(), [0, 1], 2, write, scope=("train", 0, 3))
    assert len(asked) == len(set(asked)) == 12
    alone, asked[:] = set(asked), []
    episodes(CounterConfig(episodes_at_once=1), [1, 0], 2, write, scope=("train", 0, 3))
    assert set(asked) == alone
    asked.clear()
    episodes(CounterConfig(), [0, 1], 2, write, scope=("train", 0, 4))
    assert not set(asked) & alone


# -- losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["hang", "raise", "die"])
def test_a_lost_episode_is_played_anew_once(tmp_path, caplog, word):
    wrote = []

    def write(prompt, seed):
        wrote.append(seed)
        return f"{word} once" if prompt.startswith("2:") else "add"

    config = CounterConfig(marks=str(tmp_path), template=PLAIN, step_seconds=2.0)
    with caplog.at_level(logging.WARNING, logger="layersweep.rollout.environments.episodes"):
        done = episodes(config, range(4), 3, write)
    metrics = done.experience().metrics
    assert (metrics["lost_episodes"], metrics["given_up_episodes"], metrics["success_rate"]) == (1, 0, 1.0)
    assert all(len(episode.turns) == 3 for episode in done.episodes) and len(done.episodes) == 12
    assert [r.message for r in caplog.records if "lost at turn 2" in r.message and "played anew" in r.message]
    assert len(wrote) == len(set(wrote)) == 12 * 3 + 2  # the two turns lost were written with seeds of their own


def test_an_episode_lost_twice_is_given_up_and_counted():
    # The second of start state 0's three trajectories kills their process at its second turn, each time.
    config = CounterConfig()
    done = episodes(config, [0], 3, in_turn(["add"] * 3, ["add", "die"], ["add", "wait", "add", "add"]))
    assert [(e.losses, e.given_up, len(e.turns)) for e in done.episodes] == [(0, False, 3), (2, True, 0), (0, False, 4)]
    rows = done.experience()
    assert rows.trajectory.tolist() == [0] * 3 + [2] * 4
    assert (rows.metrics["lost_episodes"], rows.metrics["given_up_episodes"]) == (2, 1)
    assert rows.metrics["success_rate"] == 1.0
    assert done.scores().score.tolist() == [1.0, 0.0, 1.0]
    assert done.scores().truncated.tolist() == [False, True, False]
    assert done.scores().losses.tolist() == [0, 2, 0]


def test_nothing_to_learn_from_is_an_error():
    done = episodes(CounterConfig(), [0], 2, lambda prompt, seed: "die")
    assert done.scores().score.tolist() == [0.0, 0.0]
    with pytest.raises(RuntimeError, match="no episode has a turn to learn from"):
        done.experience()


def test_long_observations_are_counted():
    config = CounterConfig(max_observation_chars=50, max_turns=2)
    done = episodes(config, [0, 1], 1, in_turn(["shout", "add"], starts=("s0", "s1")))
    assert done.experience().metrics["cut_observations"] == 2
    assert all(len(turn.observation) <= 50 for episode in done.episodes for turn in episode.turns)


def test_a_hanging_environment_stalls_its_own_process_alone():
    finished = {}

    hangs = {stable_seed("s0", 0, 0, losses) for losses in (0, 1)}

    def write(prompt, seed):
        if prompt == "3:at 2":
            finished["s1"] = time.monotonic() - began
        return "hang" if seed in hangs else "add"

    began = time.monotonic()
    done = episodes(CounterConfig(template=PLAIN, processes=2, step_seconds=3.0), [0, 1], 1, write)
    assert [episode.losses for episode in done.episodes] == [2, 0]
    assert finished["s1"] < 6 < time.monotonic() - began  # s0 took twice the limit


def test_a_failing_engine_fails_the_call_and_frees_the_environments():
    config = CounterConfig()

    async def generate(prompts, seeds):
        raise ValueError("stale weights")

    with closing(config.build()) as task:
        with pytest.raises(ValueError, match="stale weights"):
            asyncio.run(play(task, [InitialState("s", 0)], 3, generate, encode_prompt, decode))
        done = played(task, [InitialState("s", 0)], 1, Model(lambda prompt, seed: "add"))
        assert done.episodes[0].success == 1.0
        assert task.processes.of(0)._hosted == set()


# -- what is learned from ---------------------------------------------------------------------------------------


def test_observation_tokens_carry_no_gradient():
    """Only the logits that predict response tokens get a gradient, and observations are no targets."""
    config = GridWorldConfig()
    with closing(config.build()) as task:
        model = Model(lambda prompt, seed: "LDRU"[seed % 4])
        rows = played(task, task.prompts("train", 3), 4, model).experience()
    advantage = torch.from_numpy(GiGPO().advantages(rows.reward, rows.group, rows.trajectory, rows.step, rows.anchor))
    assert advantage.abs().sum() > 0

    def loss_of(prompts, logits):
        [batch] = pack(prompts, rows.tokens, rows.lengths, range(len(rows.lengths)), max_tokens=10**6)
        logp = torch.log_softmax(logits[: batch.input_ids.numel()], -1)[batch.predictor, batch.target]
        weight = token_weights(torch.from_numpy(rows.lengths), "sequence_mean", 2)[batch.response]
        old = torch.from_numpy(rows.logprobs)[batch.token]
        return batch, GiGPO().loss(LossTokens(logp, old, advantage[batch.response], weight, batch.response)).loss

    size = sum(len(prompt) + length for prompt, length in zip(rows.prompts, rows.lengths, strict=True))
    logits = torch.randn(4 * size, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    batch, loss = loss_of(rows.prompts, logits)
    loss.backward()
    touched = torch.zeros(len(logits), dtype=torch.bool)
    touched[batch.predictor] = True
    assert logits.grad[~touched].abs().max() == 0 and logits.grad[touched].abs().sum() > 0
    # As many targets as the model wrote, in its order: none of an observation.
    assert sorted(batch.token.tolist()) == list(range(len(rows.tokens)))
    np.testing.assert_array_equal(batch.target.numpy(), rows.tokens[batch.token.numpy()])
    # Other observation tokens, and other logits where observations are predicted: the loss is the same.
    with torch.no_grad():
        other = torch.where(touched[:, None], logits, torch.randn(logits.shape))
        _, perturbed = loss_of([prompt + 1 for prompt in rows.prompts], other)
    assert perturbed.item() == loss.item()


# -- in the rollout worker --------------------------------------------------------------------------------------


def test_the_rollout_worker_plays_environment_sections(tmp_path):
    """Both ways in, against an engine that always walks right: what it is asked, and what comes out."""
    from types import SimpleNamespace

    from layersweep.rollout.config import SuiteConfig
    from layersweep.workers.actors.rollout_worker import RolloutWorker
    from layersweep.workers.config import TrainingConfig
    from layersweep.workers.startup.model_source import ModelSource
    from layersweep.workers.startup.tiny_model_training import character_tokenizer
    from layersweep.workers.storage.tables import SCORES, STEPS

    config = GridWorldConfig(size=3, holes=1, max_turns=2, processes=1)
    tokenizer = character_tokenizer(config.build().alphabet)
    tokenizer.save_pretrained(tmp_path)
    right, end = tokenizer.convert_tokens_to_ids("R"), tokenizer.eos_token_id
    asked = []

    async def generate(run, version, prompts, seeds, sampling):
        asked.append((run, version, len(prompts), sampling.samples, sampling.logprobs))
        count = len(prompts)
        lengths, finished = np.full(count, 2, np.int32), np.ones(count, bool)
        logprobs = np.zeros(2 * count if sampling.logprobs else 0, np.float32)
        return Completions(np.tile([right, end], count), logprobs, lengths, finished, version)

    engine = SimpleNamespace(generate=SimpleNamespace(remote=generate))
    suite = SuiteConfig(name="maps", prompts=5, samples=4)
    training = TrainingConfig(prompts_per_step=3, group_size=2, max_response_tokens=2)
    worker = RolloutWorker(ModelSource(str(tmp_path)), config, [suite], training)
    with closing(worker.task):
        rows = asyncio.run(worker.experience(engine, "layer-01-seed0", 7, seed=0, step=3))
        scores = asyncio.run(worker.evaluate(engine, None, 0, "maps", "selection", seed=0, samples=4))
        greedy = asyncio.run(worker.evaluate(engine, None, 0, "maps", "selection", seed=0, samples=4, greedy=True))
    assert asked[0] == ("layer-01-seed0", 7, 6, 1, True) and (None, 0, 20, 1, False) in asked
    assert set(rows.group.tolist()) == {0, 1, 2} and rows.version == 7 and rows.lengths.tolist() == [2] * len(rows.step)
    grid = tokenizer.decode(rows.prompts[0])
    assert grid.endswith("=") and grid.removesuffix("=") == rows.anchor[0]
    assert {*rows.metrics, *rows.seconds} <= set(STEPS.types)
    # Walking right always wins where the goal is on the right of the start, in the same row, at most two away.
    wins = ["@G" in name or "@.G" in name for name in scores["prompt"]]
    assert scores["score"].tolist() == [float(win) for win in wins]
    assert {*scores, "selection", "seed", "step"} == set(SCORES.types)
    assert scores["sample"].tolist() == [0, 1, 2, 3] * 5 and set(scores["suite"]) == {"maps"}
    assert len(greedy["score"]) == 5 and set(greedy["suite"]) == {"maps@greedy"}
