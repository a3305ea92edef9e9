"""TextArena's single-player games (Guertler et al. 2025, https://www.textarena.ai)."""

import random
from typing import Annotated, Any, Literal

from pydantic import PositiveInt

from layersweep.policies.strict import written_as

from .base import EnvironmentConfig, EnvironmentTask, require


class TextArenaConfig(EnvironmentConfig):
    """One game for one player. Its reward comes at the end; as success it counts between 0 and 1."""

    type: Literal["textarena"] = "textarena"
    game: Annotated[str, written_as(r"[A-Za-z0-9][A-Za-z0-9-]*", "letters, digits and `-`")] = "GuessTheNumber-v0"
    """Name of the game in TextArena, such as `GuessTheNumber-v0` or `FrozenLake-v0`."""
    max_turns: PositiveInt = 30
    history: Literal["last", "window", "whole"] = "whole"
    template: str = "{history}{observation}"
    chat: bool = True

    def environment(self) -> "TextArenaGame":
        return TextArenaGame(self)

    def build(self) -> EnvironmentTask:
        require("textarena")
        return EnvironmentTask(self)


class TextArenaGame:
    """Environment of a TextArenaConfig. The state's key is the game's own state and its last message.

    Raises:
        ValueError: there is no such game for one player.
    """

    def __init__(self, config: TextArenaConfig):
        import textarena

        self.actions: list[str] = []
        self.category = None
        # Without the wrappers, which would put the whole history into every observation and edit actions.
        name = f"{config.game.removesuffix('-raw')}-raw"
        if name not in textarena.envs.registration.ENV_REGISTRY:
            raise ValueError(f"game: textarena has no {config.game!r}")
        self._game = textarena.make(name)
        self._random_state = random.getstate()
        try:
            self.reset(0)
        except AssertionError as error:
            raise ValueError(f"game: {config.game} is not for one player: {error}") from error

    @property
    def anchor(self) -> str:
        return f"{self._game.state.game_state!r}\n{self._message}"

    def reset(self, seed: int) -> str:
        self._with_own_random_state(self._game.reset, num_players=1, seed=seed)
        return self._read_messages()

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        errors = self._game.state.error_count
        done, _ = self._with_own_random_state(self._game.step, action=text)
        state = self._game.state
        invalid = state.error_count > errors
        if not done:
            return self._read_messages(), 0.0, False, False, {"invalid": invalid}
        rewards, facts = self._game.close()
        reward = float(rewards[0])
        info = {"success": min(1.0, max(0.0, reward)), "invalid": invalid or bool(facts[0]["invalid_move"])}
        return self._read_messages(), reward, True, False, info

    def close(self) -> None:
        pass

    def _read_messages(self) -> str:
        """Read the game's messages since the last action, without the echo of the action itself."""
        _, messages = self._game.get_observation()
        self._message = "\n".join(text for sender, text, *_ in messages if sender != 0)
        return self._message

    def _with_own_random_state(self, function: Any, **arguments: Any) -> Any:
        """Call a function of the game with a random state of its own: games use Python's global generator."""
        others = random.getstate()
        random.setstate(self._random_state)
        try:
            return function(**arguments)
        finally:
            self._random_state = random.getstate()
            random.setstate(others)
