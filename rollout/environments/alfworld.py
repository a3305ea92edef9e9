"""ALFWorld: household tasks in text (Shridhar et al. 2021, https://alfworld.github.io), on the user's copy of its data.

Games of `train` train, those of `valid_seen` select layers, those of `valid_unseen` score the selected.
"""

import functools
import json
import os
import random
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from .base import EnvironmentConfig, EnvironmentTask, InitialState, require
from .textworld import INSTRUCTIONS, TextGame, plain

SPLITS = {"train": "train", "selection": "valid_seen", "final": "valid_unseen"}
CATEGORIES = (
    "pick_and_place_simple", "look_at_obj_in_light", "pick_clean_then_place_in_recep", "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep", "pick_two_obj_and_place",
)  # fmt: skip


class AlfWorldConfig(EnvironmentConfig):
    """Household tasks of six categories. Reward 1 for a task done."""

    type: Literal["alfworld"] = "alfworld"
    data: str = "${ALFWORLD_DATA}"
    """The folder that `alfworld-download` filled, with json_2.1.1 in it. Variables and ~ are expanded."""
    max_turns: PositiveInt = 50
    history: Literal["last", "window", "whole"] = "window"
    template: str = INSTRUCTIONS
    action: Literal["whole", "tag"] = "tag"
    chat: bool = True

    @property
    def fetched(self) -> str:
        """Name of the data that the user brings, which a plan does not check."""
        return f"the games of ALFWorld in {self.data}"

    @property
    def folder(self) -> Path:
        return Path(os.path.expandvars(self.data)).expanduser() / "json_2.1.1"

    def environment(self) -> "AlfWorldGame":
        return AlfWorldGame(self)

    def build(self) -> "AlfWorldTask":
        """Make the task.

        Raises:
            ValueError: the package or its data is missing.
        """
        require("alfworld", "pip install alfworld, then alfworld-download")
        if not self.folder.is_dir():
            raise ValueError(
                f"data: there is no folder {self.folder}; run alfworld-download and name the folder that it filled, "
                "or set ALFWORLD_DATA to it"
            )
        return AlfWorldTask(self)


class AlfWorldTask(EnvironmentTask):
    """Start states are game files; a seed is a file's index in the list of all."""

    config: AlfWorldConfig

    def prompts(self, split: str, count: int, seed: int = 0) -> list[InitialState]:
        """Draw games of a split, see EnvironmentTask.prompts.

        Raises:
            ValueError: the data has fewer games.
        """
        folder = self.config.folder
        names = [game.relative_to(folder).parent.as_posix() for game in games(folder)]
        there = [InitialState(name, i) for i, name in enumerate(names) if name.split("/")[0] == SPLITS[split]]
        if split == "train":
            there = there[: self.config.start_states]
        if count > len(there):
            raise ValueError(f"alfworld: {count} games of {SPLITS[split]} wanted, {folder} has {len(there)}")
        return random.Random(f"train/{seed}").sample(there, count) if split == "train" else there[:count]


class AlfWorldGame(TextGame):
    """Environment of an AlfWorldConfig: a game that TextWorld runs, with ALFWorld's names of things."""

    def __init__(self, config: AlfWorldConfig):
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler

        super().__init__()
        self._folder = config.folder
        self.wrappers = (AlfredDemangler(shuffle=False),)

    def reset(self, seed: int) -> str:
        path = games(self._folder)[seed]
        self.category = _category(path)
        return plain(self.start(str(path)).feedback)


@functools.cache
def games(folder: Path) -> list[Path]:
    """List every solvable game below the folder, in an order that does not depend on the machine."""
    found = sorted(folder.glob("*/*/*/game.tw-pddl"))
    # Movable receptacles and sliced things are not supported by ALFWorld's text games.
    found = [game for game in found if "movable" not in str(game) and "Sliced" not in str(game) and _category(game)]
    return [game for game in found if json.loads(game.read_text())["solvable"]]


def _category(game: Path) -> str | None:
    """Read the category from a game's folder, <category>-<things>-<scene>/<trial>; None for an unknown one."""
    name = game.parent.parent.name.split("-")[0]
    return name if name in CATEGORIES else None
