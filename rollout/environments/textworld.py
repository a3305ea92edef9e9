"""TextWorld: games of rooms, things and quests, made here by its own generator (Cote et al. 2018).

A game takes some seconds to make and compile, so games are kept in the cache folder, by their settings and seed.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from .base import EnvironmentConfig, EnvironmentTask, require

INSTRUCTIONS = """{history}{observation}

You may do: {actions}
Write what you do next between <action> and </action>."""


class TextWorldConfig(EnvironmentConfig):
    """Generated games. The reward of a step is its share of the game's points; success is winning the game."""

    type: Literal["textworld"] = "textworld"
    rooms: PositiveInt = 3
    objects: PositiveInt = 5
    quest_length: PositiveInt = 3
    """Actions that winning requires at least."""
    max_turns: PositiveInt = 20
    history: Literal["last", "window", "whole"] = "window"
    template: str = INSTRUCTIONS
    action: Literal["whole", "tag"] = "tag"
    chat: bool = True
    start_states: PositiveInt | None = 100
    """Number of different games in training; each is generated once, in some seconds."""
    reset_seconds: float = 120.0
    """Seconds for the start of an episode, generating the game included."""

    def environment(self) -> "TextWorldGame":
        return TextWorldGame(self)

    def build(self) -> EnvironmentTask:
        require("textworld")
        return EnvironmentTask(self)


class TextGame:
    """A game file that TextWorld runs, of any origin. The state's key lists all facts that are true in the game."""

    wrappers: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.category: str | None = None
        self._game = None
        self._path = ""

    @property
    def anchor(self) -> str:
        return "\n".join(sorted(map(str, self._state.facts)))

    @property
    def actions(self) -> list[str]:
        return list(self._state.admissible_commands)

    def start(self, path: str) -> Any:
        """Start a game file; return its first state."""
        import textworld

        if path != self._path:
            self.close()
            infos = textworld.EnvInfos(
                feedback=True, description=True, objective=True, admissible_commands=True, facts=True, won=True,
                lost=True, max_score=True,
            )  # fmt: skip
            self._game = textworld.start(path, infos, wrappers=list(self.wrappers))
            self._path = path
        self._state, self._score = self._game.reset(), 0.0
        return self._state

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        known, before = text in self.actions, self.anchor
        self._state, score, done = self._game.step(text)
        reward, self._score = (score - self._score) / (self._state.get("max_score") or 1), score
        info = {
            "success": float(self._state.won),
            # The parser understands more than it lists.
            "invalid": not known and not done and self.anchor == before,
        }
        return plain(self._state.feedback), reward, bool(self._state.won or self._state.lost or done), False, info

    def close(self) -> None:
        if self._game is not None:
            self._game.close()


class TextWorldGame(TextGame):
    """Environment of a TextWorldConfig."""

    def __init__(self, config: TextWorldConfig):
        import textworld  # noqa: F401  takes seconds: now, rather than within an episode's time

        super().__init__()
        self.config = config

    def reset(self, seed: int) -> str:
        state = self.start(game_file(self.config, seed))
        return f"{plain(state.objective)}\n\n{plain(state.description)}"


def plain(feedback: str) -> str:
    """Remove the input prompt and status line that the interpreter puts after a game's answer."""
    return feedback.rsplit("\n>", 1)[0].strip()


def game_file(config: TextWorldConfig, seed: int) -> str:
    """Return the path of a seed's compiled game; generate it unless it is cached."""
    import textworld.generator

    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layersweep" / "textworld"
    name = f"{textworld.__version__}-{config.rooms}-{config.objects}-{config.quest_length}"
    folder = root / name
    path = folder / f"{seed}.z8"
    if path.is_file():
        return str(path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        options = textworld.GameOptions()
        options.seeds = seed
        options.nb_rooms, options.nb_objects = config.rooms, config.objects
        options.quest_length = config.quest_length
        options.path = os.path.join(scratch, path.name)
        textworld.generator.compile_game(textworld.generator.make_game(options), options)
        for part in (path.with_suffix(".json"), path):  # the game last: it says that all is there
            os.replace(os.path.join(scratch, part.name), part)
    return str(path)
