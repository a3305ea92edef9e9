"""The demo's environment: a small map with holes in it, to be crossed one step at a time."""

import hashlib
import random
import string
from collections import deque
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from .base import EnvironmentConfig, EnvironmentTask, InitialState

MOVES = {"L": (0, -1), "D": (1, 0), "R": (0, 1), "U": (-1, 0)}
AGENT, FREE, HOLE, GOAL = "@.OG"


class GridWorldConfig(EnvironmentConfig):
    """A map of `@` (here), `.` (free), `O` (a hole, the end) and `G` (goal, reward 1); an action is one of L D R U.

    Walking into the border changes nothing. Maps are random, always with a path to the goal; the splits share none.
    """

    tiny: ClassVar[bool] = True
    """Whether the task has an alphabet and demonstrations, so that a tiny model can be made for it."""

    type: Literal["gridworld"] = "gridworld"
    size: int = Field(4, ge=3, le=9)
    """Rows and columns."""
    holes: int = Field(4, ge=0)
    """Holes of a map."""
    expert_share: float = Field(0.4, ge=0, le=1)
    """Share of the demonstrations' actions that lie on a shortest path; the others are random."""
    max_turns: PositiveInt = 12
    template: str = "{observation}="
    turn_template: str = "{observation}={action}\n"

    def environment(self) -> "GridWorld":
        return GridWorld(self)

    def build(self) -> "GridWorldTask":
        """Make the task.

        Raises:
            ValueError: the map is too small for its holes.
        """
        if self.holes > self.size**2 - 4:
            raise ValueError(f"holes: {self.holes} leave no way on a map of {self.size}x{self.size}")
        if self.start_states:
            raise ValueError("start_states: the grid world's maps are without end, leave it out")
        return GridWorldTask(self)


class GridWorld:
    """Environment of a GridWorldConfig; its observation is its whole state."""

    def __init__(self, config: GridWorldConfig):
        self.config = config
        self.actions = list(MOVES)
        self.category = None

    @property
    def anchor(self) -> str:
        return self.grid

    def reset(self, seed: int) -> str:
        self.grid = draw_map(self.config, random.Random(seed))
        return self.grid

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if text not in MOVES:
            return self.grid, 0.0, False, False, {"invalid": True}
        self.grid, under = walk(self.grid, text)
        return self.grid, float(under == GOAL), under in (GOAL, HOLE), False, {"success": float(under == GOAL)}

    def close(self) -> None:
        pass


class GridWorldTask(EnvironmentTask):
    """Start states by map, and demonstrations for a tiny model's warm-up."""

    config: GridWorldConfig

    @property
    def alphabet(self) -> str:
        written = string.Formatter().parse(self.config.template + self.config.turn_template)
        return f"{AGENT}{FREE}{HOLE}{GOAL}\n{', '.join(MOVES)}0123456789" + "".join(text for text, *_ in written)

    def prompts(self, split: str, count: int, seed: int = 0) -> list[InitialState]:
        """Draw start states, see EnvironmentTask.prompts; a state's name is its map, whose hash decides the split."""
        rng = random.Random(f"{split}/{seed if split == 'train' else 0}")
        found: dict[str, InitialState] = {}
        for _ in range(100 * count + 1000):
            start = rng.getrandbits(32)
            grid = draw_map(self.config, random.Random(start))
            if _split_of(grid) == split:
                found.setdefault(grid, InitialState(grid.replace("\n", "/"), start))
            if len(found) == count:
                return list(found.values())
        raise ValueError(f"gridworld: {split} has few more than {len(found)} maps of this size with these holes")

    def demonstrations(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Make prompts and actions on maps of the train split: `expert_share` of them expert, the rest random."""
        rng = random.Random(f"demonstrations/{seed}")
        shown: list[tuple[str, str]] = []
        while len(shown) < count:
            grid = draw_map(self.config, rng)
            if _split_of(grid) != "train":
                continue
            prompt = self.config.template.format(observation=grid, history="", actions=", ".join(MOVES), turn=1)
            expert = rng.random() < self.config.expert_share
            shown.append((prompt, rng.choice(best_moves(grid) if expert else list(MOVES))))
        return shown


def draw_map(config: GridWorldConfig, rng: random.Random) -> str:
    """Draw a map on which the goal can be reached. Rows are lines."""
    size = config.size
    while True:
        cells = [AGENT, GOAL, *HOLE * config.holes, *FREE * (size**2 - 2 - config.holes)]
        rng.shuffle(cells)
        grid = "\n".join("".join(cells[i : i + size]) for i in range(0, size**2, size))
        if best_moves(grid):
            return grid


def walk(grid: str, move: str) -> tuple[str, str]:
    """Return the map after a move, and what was on the cell that the agent came to."""
    width = grid.index("\n") + 1
    here = grid.index(AGENT)
    row, column = here // width + MOVES[move][0], here % width + MOVES[move][1]
    if not (0 <= row < width - 1 and 0 <= column < width - 1):
        return grid, FREE
    to, cells = row * width + column, list(grid)
    under, cells[here], cells[to] = cells[to], FREE, AGENT
    return "".join(cells), under


def best_moves(grid: str) -> list[str]:
    """List the first moves of all shortest paths to the goal; none where there is no path."""
    width = grid.index("\n") + 1
    steps = {move: row * width + column for move, (row, column) in MOVES.items()}
    distance, todo = {grid.index(GOAL): 0}, deque([grid.index(GOAL)])
    while todo:
        cell = todo.popleft()
        for step in steps.values():
            beside = cell - step
            if 0 <= beside < len(grid) and grid[beside] in (FREE, AGENT) and beside not in distance:
                distance[beside] = distance[cell] + 1
                todo.append(beside)
    here = grid.index(AGENT)
    return [m for m, step in steps.items() if here in distance and distance.get(here + step) == distance[here] - 1]


def _split_of(grid: str) -> str:
    tenth = hashlib.blake2b(grid.encode(), digest_size=2).digest()[0] % 10
    return {0: "selection", 1: "final"}.get(tenth, "train")
