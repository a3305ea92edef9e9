"""Gymnasium's toy worlds as text: FrozenLake, Taxi, CliffWalking (https://gymnasium.farama.org)."""

from typing import Any, Literal

from pydantic import Field, PositiveInt

from .base import EnvironmentConfig, EnvironmentTask, require

ACTIONS = {
    "FrozenLake": ("left", "down", "right", "up"),
    "Taxi": ("south", "north", "east", "west", "pickup", "dropoff"),
    "CliffWalking": ("up", "right", "down", "left"),
}
"""Action names, in the order of the package's own numbers."""
TAXI_STOPS = ("R", "G", "Y", "B", "the taxi")


class GymnasiumConfig(EnvironmentConfig):
    """One of Gymnasium's toy worlds. Rewards are its own; success is reaching the goal, or the drop-off.

    CliffWalking has a single start state and Taxi 300, so there the splits differ in their seeds alone.
    """

    type: Literal["gymnasium"] = "gymnasium"
    world: Literal["FrozenLake", "Taxi", "CliffWalking"] = "FrozenLake"
    slippery: bool = False
    """Whether moves sometimes go another way (FrozenLake and CliffWalking; Taxi has rain instead)."""
    size: int = Field(4, ge=3, le=16)
    """Rows and columns of FrozenLake's maps, which are random, one per start state."""
    max_turns: PositiveInt = 30
    template: str = "{history}{observation}\nActions: {actions}\nNext action:"

    def environment(self) -> "GymnasiumWorld":
        return GymnasiumWorld(self)

    def build(self) -> EnvironmentTask:
        require("gymnasium")
        return EnvironmentTask(self)


class GymnasiumWorld:
    """A toy world whose observation is its whole state: the map with the agent as `@`, and for Taxi a sentence."""

    def __init__(self, config: GymnasiumConfig):
        import gymnasium

        self.config = config
        self.category = None
        self.actions = list(ACTIONS[config.world])
        specs = [spec for spec in gymnasium.registry.values() if spec.name == config.world and spec.namespace is None]
        self._id = max(specs, key=lambda spec: spec.version).id
        self._world = None

    @property
    def anchor(self) -> str:
        return self._observation

    def reset(self, seed: int) -> str:
        self.close()
        self._world = self._make(seed)
        state, _ = self._world.reset(seed=seed)
        return self._look(state)

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        action = text.strip().lower()
        if action not in self.actions:
            return self._observation, 0.0, False, False, {"invalid": True}
        state, reward, terminated, truncated, _ = self._world.step(self.actions.index(action))
        # FrozenLake also terminates in a hole, where its reward is 0.
        success = float(terminated and (self.config.world != "FrozenLake" or reward > 0))
        return self._look(state), float(reward), terminated, truncated, {"success": success}

    def close(self) -> None:
        if self._world is not None:
            self._world.close()

    def _make(self, seed: int) -> Any:
        import gymnasium
        from gymnasium.envs.toy_text.frozen_lake import generate_random_map

        options = {"is_rainy" if self.config.world == "Taxi" else "is_slippery": self.config.slippery}
        if self.config.world == "FrozenLake":
            options["desc"] = generate_random_map(self.config.size, seed=seed)
        return gymnasium.make(self._id, **options)

    def _look(self, state: int) -> str:
        world, state = self._world.unwrapped, int(state)
        if self.config.world == "Taxi":
            row, column, passenger, goal = world.decode(state)
            lines = ["".join(map(bytes.decode, line)) for line in world.desc]
            stops = f"Passenger at {TAXI_STOPS[passenger]}. To go to {TAXI_STOPS[goal]}."
            self._observation = "\n".join([*lines, f"Taxi at row {row}, column {column}. {stops}"])
            return self._observation
        if self.config.world == "FrozenLake":
            lines = [[cell.decode() for cell in line] for line in world.desc]
        else:  # the cliff lies between start and goal
            lines = [["."] * world.shape[1] for _ in range(world.shape[0])]
            lines[-1] = ["S", *"C" * (world.shape[1] - 2), "G"]
        row, column = divmod(state, len(lines[0]))
        lines[row][column] = "@"
        self._observation = "\n".join(map("".join, lines))
        return self._observation
