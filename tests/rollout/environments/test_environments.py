"""Environments in their processes: what they answer, what happens when they misbehave, and the real packages."""

import asyncio
import os
import random
from contextlib import closing

import psutil
import pytest

from layersweep.rollout.environments.alfworld import AlfWorldConfig
from layersweep.rollout.environments.base import InitialState, require
from layersweep.rollout.environments.demo_gridworld import GridWorldConfig, best_moves, draw_map, walk
from layersweep.rollout.environments.gymnasium import GymnasiumConfig
from layersweep.rollout.environments.process_pool import Call, EnvironmentLost, EnvironmentProcess
from layersweep.rollout.environments.textarena import TextArenaConfig
from layersweep.rollout.environments.textworld import TextWorldConfig, game_file, plain
from tests.helpers.hostile_environment import CounterConfig
from tests.helpers.scripted import Model, played


@pytest.fixture
def process(request):
    process = EnvironmentProcess(CounterConfig(**getattr(request, "param", {})))
    yield process
    process.close()


def run(process, *calls):
    return asyncio.run(process.run([Call(*call) for call in calls]))


# -- the grid world ---------------------------------------------------------------------------------------------


def test_grid_world_by_hand():
    grid = "@..\nO..\n..G"
    assert walk(grid, "R") == (".@.\nO..\n..G", ".")
    assert walk(grid, "D") == ("...\n@..\n..G", "O")
    assert walk(grid, "L") == walk(grid, "U") == (grid, ".")
    assert best_moves(grid) == ["R"]
    assert best_moves(".@.\nO..\n..G") == ["D", "R"]
    assert best_moves("@O.\nO..\n..G") == []
    assert best_moves("..G\nO@.\n...") == ["R", "U"]


def test_grid_world_episodes_end_in_goal_or_hole():
    world = GridWorldConfig(size=3, holes=1).environment()
    world.reset(0)
    world.grid = "@G.\nO..\n..."
    assert world.step("X") == ("@G.\nO..\n...", 0.0, False, False, {"invalid": True})
    assert world.step("R") == (".@.\nO..\n...", 1.0, True, False, {"success": 1.0})
    world.grid = "@G.\nO..\n..."
    assert world.step("D") == (".G.\n@..\n...", 0.0, True, False, {"success": 0.0})


def test_grid_world_splits_share_no_map():
    task = GridWorldConfig().build()
    of = {split: {start.id for start in task.prompts(split, 200)} for split in ("train", "selection", "final")}
    assert all(len(ids) == 200 for ids in of.values())
    assert not of["train"] & of["selection"] and not of["train"] & of["final"] and not of["selection"] & of["final"]
    assert task.prompts("train", 8, seed=1) == task.prompts("train", 8, seed=1) != task.prompts("train", 8, seed=2)
    shown = {prompt.removesuffix("=").replace("\n", "/") for prompt, _ in task.demonstrations(500, 0)}
    assert not shown & (of["selection"] | of["final"])
    assert {c for prompt, move in task.demonstrations(50, 0) for c in prompt + move} <= set(task.alphabet)
    start = task.prompts("selection", 1)[0]
    assert GridWorldConfig().environment().reset(start.seed).replace("\n", "/") == start.id


def test_grid_world_demonstrations_are_partly_expert():
    shown = GridWorldConfig(expert_share=1.0).build().demonstrations(100, 0)
    assert all(move in best_moves(prompt.removesuffix("=")) for prompt, move in shown)
    grid = draw_map(GridWorldConfig(), random.Random(3))
    assert grid.count("O") == 4 and grid.count("@") == grid.count("G") == 1 and len(grid.split("\n")) == 4


def test_grid_world_says_when_there_are_too_few_maps():
    with pytest.raises(ValueError, match="few more than"):
        GridWorldConfig(size=3, holes=5).build().prompts("selection", 100)
    with pytest.raises(ValueError, match="holes: 6 leave no way"):
        GridWorldConfig(size=3, holes=6).build()


# -- processes --------------------------------------------------------------------------------------------------


def test_start_states_of_splits_differ():
    task = CounterConfig(start_states=5).build()
    assert sorted(start.seed for start in task.prompts("train", 5, seed=3)) == [0, 1, 2, 3, 4]
    seeds = {split: {s.seed for s in task.prompts(split, 4)} for split in ("train", "selection", "final")}
    assert len(set.union(*seeds.values())) == 12
    with pytest.raises(ValueError, match="start_states: 5 is fewer than the 6"):
        task.prompts("train", 6)


def test_answers_are_the_environments_own(process):
    first, other = run(process, (0, 8, [], ""), (1, 9, [], ""))
    assert (first.observation, first.anchor, first.category, first.actions) == ("at 0", "8:0", "even", ["add", "wait"])
    assert (other.anchor, other.category) == ("9:0", "odd")
    steps = [run(process, (0, 8, ["add"] * n, f"8:{n - 1}"))[0] for n in (1, 2, 3)]
    assert [step.anchor for step in steps] == ["8:1", "8:2", "8:3"]
    assert [(step.reward, step.success, step.terminated) for step in steps] == [
        (0, 0, False),
        (0, 0, False),
        (1, 1, True),
    ]
    assert run(process, (1, 9, ["dance"], "9:0"))[0].invalid


def test_what_an_environment_prints_is_no_reply(process):
    assert run(process, (0, 0, ["print"], "0:0"), (1, 0, ["add"], "0:0"))[1].anchor == "0:1"


@pytest.mark.parametrize(
    ("process", "word", "reason"),
    [
        ({"step_seconds": 1.0}, "hang", "no answer within 1 s"),
        ({}, "die", "the process ended with status 7"),
        ({}, "raise", "ValueError: no such thing (hostile_environment.py, line 59)"),
    ],
    indirect=["process"],
)
def test_a_fault_costs_its_own_episode_alone(process, word, reason):
    run(process, *[(n, n, [], "") for n in range(4)])
    run(process, *[(n, n, ["add"], f"{n}:0") for n in range(4)])
    answers = run(process, *[(n, n, ["add", word if n == 1 else "add"], f"{n}:1") for n in range(4)])
    assert answers[1] == EnvironmentLost(reason)
    assert [answers[n].anchor for n in (0, 2, 3)] == ["0:2", "2:2", "3:2"]
    assert [run(process, (n, n, ["add"] * 3, f"{n}:2"))[0].success for n in (0, 2, 3)] == [1, 1, 1]
    assert run(process, (9, 1, [], ""))[0].anchor == "1:0"


@pytest.mark.parametrize("process", [{"drift": True}], indirect=True)
def test_an_environment_that_cannot_be_brought_back_is_lost(process):
    run(process, (0, 0, [], ""), (1, 1, [], ""))
    lost = run(process, (0, 0, ["die"], "0:0"), (1, 1, ["add"], "1:0"))
    assert lost[0] == EnvironmentLost("the process ended with status 7")
    assert "not a function of its seed" in lost[1].reason


@pytest.mark.parametrize("process", [{"max_observation_chars": 100}], indirect=True)
def test_a_long_observation_is_cut(process):
    answer = run(process, (0, 0, ["shout"], "0:0"))[0]
    assert answer.cut and answer.observation == "x" * 100
    assert not run(process, (1, 0, ["add"], "0:0"))[0].cut


def test_forgotten_episodes_free_their_environment(process):
    run(process, *[(n, 0, [], "") for n in range(3)])
    process.forget([0, 1, 2])
    assert run(process, (3, 5, [], ""))[0].anchor == "5:0"
    assert process._hosted == {3}


def test_a_process_ends_when_its_parent_is_gone(process):
    run(process, (0, 0, [], ""))
    process._child._process.stdin.close()  # as when the parent dies
    assert process._child.receive(seconds=60) is None
    assert process._stop().startswith("the process ended with status ")


def test_what_cannot_start_says_why():
    process = EnvironmentProcess(CounterConfig(missing="no_such_module"))
    with closing(process), pytest.raises(RuntimeError, match="counter: ModuleNotFoundError: No module named 'no_such"):
        run(process, (0, 0, [], ""))


def test_missing_packages_name_the_extra():
    with pytest.raises(ValueError, match=r"no_such_package is not installed: pip install 'layersweep\[agents\]'"):
        require("no_such_package")


@pytest.mark.slow
def test_memory_stays_flat_over_2000_episodes():
    """Every tenth action is 1 MB of observation, every fiftieth raises."""
    task = CounterConfig(max_observation_chars=1000).build()

    def write(prompt: str, seed: int) -> str:
        return "raise" if seed % 50 == 0 else "shout" if seed % 10 == 1 else "add"

    def megabytes() -> list[float]:
        pids = [os.getpid(), *(process._child._process.pid for process in task.processes._all)]
        return [psutil.Process(pid).memory_info().rss / 2**20 for pid in pids]

    def episodes(batch: int) -> None:
        done = played(task, [InitialState(str(i), i) for i in range(25)], 4, Model(write), scope=(batch,))
        assert len(done.episodes) == 100 and done.cut_observations > 10

    with closing(task):
        for batch in range(5):
            episodes(batch)
        before = megabytes()
        for batch in range(5, 25):
            episodes(batch)
        assert max(now - then for now, then in zip(megabytes(), before, strict=True)) < 4


# -- other people's worlds --------------------------------------------------------------------------------------


def choose(prompt: str, seed: int) -> str:
    """One of the actions that the prompt's second-last line or so lists after a colon."""
    listed = next(line for line in reversed(prompt.split("\n")) if ": " in line).split(": ", 1)[1]
    return random.Random(seed).choice([*listed.split(", "), "dance"])


def check_against(direct, done, group_size, groups):
    """Every trajectory once more, in an environment of this process, step by step."""
    assert [e.group for e in done.episodes] == [g for g in range(groups) for _ in range(group_size)]
    for episode in done.episodes:
        observation = direct.reset(episode.start.seed)
        for turn in episode.turns:
            assert (turn.observation, turn.anchor) == (observation, direct.anchor)
            observation, reward, terminated, truncated, info = direct.step(turn.action)
            assert turn.valid is not info.get("invalid", False)
            assert turn.reward == pytest.approx(reward - 0.1 * info.get("invalid", False))
        assert (episode.terminated, episode.success) == (terminated, info.get("success", 0.0))


@pytest.mark.parametrize("slippery", [False, True])
def test_frozen_lake_step_by_step(slippery):
    gymnasium = pytest.importorskip("gymnasium")
    config = GymnasiumConfig(world="FrozenLake", slippery=slippery, max_turns=15)
    with closing(config.build()) as task:
        done = played(task, task.prompts("train", 20), 4, Model(choose))
    check_against(config.environment(), done, 4, 20)
    # And the package itself, without the adapter.
    from gymnasium.envs.toy_text.frozen_lake import generate_random_map

    moves = ["left", "down", "right", "up"]
    for episode in done.episodes:
        lake = gymnasium.make(
            "FrozenLake-v1", desc=generate_random_map(4, seed=episode.start.seed), is_slippery=slippery
        )
        state, _ = lake.reset(seed=episode.start.seed)
        for turn in episode.turns:
            assert turn.observation.replace("\n", "").index("@") == state
            if turn.action in moves:
                state, reward, *_ = lake.step(moves.index(turn.action))
                assert turn.reward == reward
    assert 0 < sum(e.success for e in done.episodes) < 80
    assert any(not turn.valid for e in done.episodes for turn in e.turns)


@pytest.mark.parametrize(("world", "goal"), [("Taxi", "dropoff"), ("CliffWalking", "right")])
def test_taxi_and_cliff_walking(world, goal):
    pytest.importorskip("gymnasium")
    config = GymnasiumConfig(world=world)
    assert goal in config.environment().actions
    with closing(config.build()) as task:
        done = played(task, task.prompts("train", 3), 2, Model(choose))
    check_against(config.environment(), done, 2, 3)


def test_taxi_tells_everything():
    pytest.importorskip("gymnasium")
    taxi = GymnasiumConfig(world="Taxi").environment()
    taxi.reset(0)
    world = taxi._world.unwrapped
    assert taxi._look(world.encode(2, 3, 4, 1)).split("\n")[-1] == (
        "Taxi at row 2, column 3. Passenger at the taxi. To go to G."
    )
    world.s = world.encode(4, 0, 4, 2)  # at Y, where the passenger wants to go
    assert taxi.step("dropoff")[1:] == (20.0, True, False, {"success": 1.0})


def test_cliff_walking_by_hand():
    pytest.importorskip("gymnasium")
    cliff = GymnasiumConfig(world="CliffWalking").environment()
    assert cliff.reset(0) == "............\n............\n............\n@CCCCCCCCCCG"
    assert cliff.step("right")[1:3] == (-100.0, False)
    answers = [cliff.step(move) for move in ["up", *["right"] * 11, "down"]]
    assert answers[0][0] == "............\n............\n@...........\nSCCCCCCCCCCG"
    assert answers[-1][1:] == (-1.0, True, False, {"success": 1.0})


@pytest.fixture(scope="session")
def text_world(tmp_path_factory):
    """A game generated on the spot."""
    pytest.importorskip("textworld")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield TextWorldConfig(rooms=2, objects=3, quest_length=2, max_turns=8, chat=False, action="whole")
    patch.undo()


def test_text_world_step_by_step(text_world):
    import textworld

    starts = [InitialState(f"group-{i}", 11) for i in range(20)]
    with closing(text_world.build()) as task:
        done = played(task, starts, 2, Model(choose_command))
    infos = textworld.EnvInfos(feedback=True, description=True, objective=True, facts=True, max_score=True, won=True)
    game = textworld.start(game_file(text_world, 11), infos)
    for episode in done.episodes:
        state, points = game.reset(), 0
        for i, turn in enumerate(episode.turns):
            first = f"{plain(state.objective)}\n\n{plain(state.description)}"
            assert turn.observation == (plain(state.feedback) if i else first)
            assert turn.anchor == "\n".join(sorted(map(str, state.facts)))
            state, score, _ = game.step(turn.action)
            assert turn.reward == pytest.approx((score - points) / state.max_score - 0.1 * (not turn.valid))
            points = score
        assert episode.success == state.won
    assert any(e.success for e in done.episodes) and any(not turn.valid for e in done.episodes for turn in e.turns)
    metrics = done.experience().metrics
    assert metrics["step_groups_larger_than_one"] > 0


def choose_command(prompt: str, seed: int) -> str:
    listed = next(line for line in prompt.split("\n") if line.startswith("You may do: "))
    return random.Random(seed).choice([*listed.removeprefix("You may do: ").split(", "), "dance wildly"])


def test_text_world_is_won_by_its_own_walkthrough(text_world):
    import textworld

    game = textworld.start(game_file(text_world, 11), textworld.EnvInfos(policy_commands=True))
    state, world = game.reset(), text_world.environment()
    world.reset(11)
    for command in list(state.policy_commands):
        _, reward, terminated, _, info = world.step(command)
    assert (terminated, info["success"], info["invalid"]) == (True, 1.0, False)
    assert reward > 0


def test_text_arena_guess_the_number():
    pytest.importorskip("textarena")
    config = TextArenaConfig(game="GuessTheNumber-v0", chat=False)

    def halve(prompt: str, seed: int) -> str:
        low, high = 1, 20
        for line in prompt.split("\n> ")[1:]:
            guess, hint = int(line.split("]")[0][1:]), line.split("]")[1]
            low, high = (guess + 1, high) if "higher" in hint else (low, guess - 1)
        return f"[{(low + high) // 2}]"

    with closing(config.build()) as task:
        done = played(task, task.prompts("train", 4), 2, Model(halve))
    check_against(config.environment(), done, 2, 4)
    assert [e.success for e in done.episodes] == [1.0] * 8
    assert all(len(e.turns) <= 5 for e in done.episodes)
    # Same start state, same number, same guesses: every state is met twice.
    assert done.experience().metrics["step_groups_larger_than_one"] == 1.0


def test_text_arena_refuses_what_it_has_not_for_one_player():
    pytest.importorskip("textarena")
    with pytest.raises(ValueError, match="textarena has no 'NoSuchGame-v0'"):
        TextArenaConfig(game="NoSuchGame-v0").environment()
    with pytest.raises(ValueError, match="ConnectFour-v0 is not for one player"):
        TextArenaConfig(game="ConnectFour-v0").environment()


def test_alfworld_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("layersweep.rollout.environments.alfworld.require", lambda *_: None)
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/json_2.1.1; run alfworld-download"):
        AlfWorldConfig(data=str(tmp_path)).build()


def test_alfworld_start_states_are_its_games(monkeypatch, tmp_path):
    monkeypatch.setattr("layersweep.rollout.environments.alfworld.require", lambda *_: None)
    games = {
        "train/pick_and_place_simple-Mug-None-Desk-308/trial_1": True,
        "train/pick_heat_then_place_in_recep-Egg-None-Fridge-2/trial_2": True,
        "train/pick_heat_then_place_in_recep-Egg-None-Fridge-2/trial_3": False,  # cannot be solved
        "train/pick_and_place_with_movable_recep-Pen-Mug-Desk-3/trial_4": True,  # not supported
        "valid_seen/look_at_obj_in_light-Book-None-DeskLamp-1/trial_5": True,
    }
    for name, solvable in games.items():
        folder = tmp_path / "json_2.1.1" / name
        folder.mkdir(parents=True)
        (folder / "game.tw-pddl").write_text(f'{{"solvable": {str(solvable).lower()}}}')
    task = AlfWorldConfig(data=str(tmp_path)).build()
    assert {start.id for start in task.prompts("train", 2)} == set(list(games)[:2])
    assert [start.id for start in task.prompts("selection", 1)] == [list(games)[4]]
    with pytest.raises(ValueError, match="3 games of train wanted, .* has 2"):
        task.prompts("train", 3)
