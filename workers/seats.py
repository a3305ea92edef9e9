"""Which GPU takes whom: the arithmetic of placement, without Ray, so that a plan and a run count alike."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

from .config import ResourcesConfig

HOST_SHARE = 0.05
"""Of a GPU, as Ray counts, for the trunk that layer trainers share; the memory it takes is the trunk's."""
SHARED = 0.5
"""Layer trainers that ask for at most this much of a GPU share it, around one trunk."""
EPSILON = 1e-9


class NoRoom(ValueError):
    """Actors that these GPUs can never take, however long they wait. The text starts with the spec's field."""


@dataclass
class Card:
    """One GPU and who is on it."""

    node: int
    free: float = 1.0
    engines: list[int] = field(default_factory=list)
    """Numbers of the engines that span it."""
    whole_ranks: int = 0
    """Ranks of runs that train the whole model."""
    layer_ranks: int = 0
    """Room for ranks of layer runs."""
    berth: float = 0.0
    """Share held for a trunk and the layer trainers around it; 0 where they do not share."""


@dataclass(frozen=True)
class Seating:
    """Everybody's place."""

    cards: tuple[Card, ...]
    whole_runs: int
    """Runs of the whole model that train at the same time."""
    layer_runs: int
    """Layer runs that train at the same time."""
    in_turn: bool = False
    """Whole-model runs and layer runs take the same GPUs, one after the other, instead of others side by side."""

    @property
    def runs(self) -> int:
        """That train at the same time."""
        return max(self.whole_runs, self.layer_runs) if self.in_turn else self.whole_runs + self.layer_runs

    @property
    def berths(self) -> tuple[float, ...]:
        """Share of a GPU of each berth (workers.placement.Berths)."""
        return tuple(card.berth for card in self.cards if card.berth)


def aboard(share: float, gpus: float) -> int:
    """How many trainers of so many GPUs fit into a berth of this share, beside its trunk."""
    return max(0, int((share - HOST_SHARE) / gpus + EPSILON))


def seat(resources: ResourcesConfig, whole_runs: int, node_gpus: Sequence[int]) -> Seating:
    """Engines first; then as many of the whole-model runs at the same time as leave room for a layer run; then layer
    runs in all that is left.

    A fraction goes to the fullest GPU that has room, as Ray places it. Layer trainers of at most half a GPU share
    berths, held for the whole sweep: every GPU that is still empty, or where none is, what is left of one. Larger ones
    come and go with their run, so where both do not fit side by side, whole-model and layer runs take turns.

    Args:
        whole_runs: runs of the whole model in the plan.
        node_gpus: GPUs of each node.

    Raises:
        NoRoom: not even one run of each kind finds its place beside the engines.
    """
    cards = [Card(node) for node, gpus in enumerate(node_gpus) for _ in range(gpus)]
    _seat_engines(cards, resources)
    for at_once in range(whole_runs, min(whole_runs, 1) - 1, -1):
        tried = copy.deepcopy(cards)
        if _seat_whole(tried, resources, at_once) and (layer_runs := _seat_layers(tried, resources)):
            return Seating(tuple(tried), at_once, layer_runs)
    if resources.trainer.gpus > SHARED:
        tried, alone = copy.deepcopy(cards), copy.deepcopy(cards)
        if _seat_whole(tried, resources, 1) and (layer_runs := _seat_layers(alone, resources)):
            for card, other in zip(tried, alone, strict=True):
                card.layer_ranks = other.layer_ranks
            return Seating(tuple(tried), 1, layer_runs, in_turn=True)
    raise NoRoom(_what_is_missing(cards, resources, whole_runs))


def _seat_engines(cards: list[Card], resources: ResourcesConfig) -> None:
    for number in range(resources.engines):
        taken = _take(cards, resources.engine.gpus)
        if not taken:
            there = "1 GPU takes" if len(cards) == 1 else f"{len(cards)} GPUs take"
            raise NoRoom(f"resources.engines: {resources.engines} engines of {resources.engine.gpus:g} GPUs each, and "
                         f"{there} {number}; lower engines, or resources.engine.gpus")  # fmt: skip
        for card in taken:
            card.engines.append(number)


def _seat_whole(cards: list[Card], resources: ResourcesConfig, runs: int) -> bool:
    """Seat so many whole-model runs; False where there is no room."""
    gpus = (resources.full_trainer or resources.trainer).gpus
    ranks = [_take(cards, gpus) for _ in range(runs * resources.full_trainer_ranks)]
    for card in (card for rank in ranks for card in rank):
        card.whole_ranks += 1
    return all(ranks)


def _seat_layers(cards: list[Card], resources: ResourcesConfig) -> int:
    """Fill what is free with ranks of layer runs; returns how many runs that makes."""
    gpus = resources.trainer.gpus
    if gpus <= SHARED:
        empty = [card for card in cards if card.free == 1] or [max(cards, key=lambda card: card.free)]
        for card in empty:
            card.layer_ranks = aboard(card.free, gpus)
            card.berth = card.free if card.layer_ranks else 0.0
        ranks = sum(card.layer_ranks for card in empty)
    else:
        ranks = 0
        while taken := _take(cards, gpus):
            ranks += 1
            for card in taken:
                card.layer_ranks += 1
    return ranks // resources.trainer_ranks


def _take(cards: list[Card], gpus: float) -> list[Card]:
    """The GPUs of one actor, all on one node; none where there is no room."""
    if gpus < 1:
        room = [card for card in cards if card.free >= gpus - EPSILON]
        chosen = [min(room, key=lambda card: card.free)] if room else []
    else:
        empty: dict[int, list[Card]] = {}
        for card in cards:
            if card.free == 1:
                empty.setdefault(card.node, []).append(card)
        chosen = next((found[: int(gpus)] for found in empty.values() if len(found) >= gpus), [])
    for card in chosen:
        card.free = round(card.free - min(1.0, gpus), 9)
    return chosen


def _what_is_missing(cards: list[Card], resources: ResourcesConfig, whole_runs: int) -> str:
    """Beside the engines, which are seated."""
    full, shared = resources.full_trainer or resources.trainer, resources.trainer.gpus <= SHARED
    asked = f"a layer run's {resources.trainer_ranks} x {resources.trainer.gpus:g}"
    if shared:
        asked += f" and {HOST_SHARE:g} of a GPU for the trunk that they share"
    if whole_runs:
        beside = "beside" if shared else "or"
        asked += f", {beside} the whole model's {resources.full_trainer_ranks} x {full.gpus:g}"
    left, there = sum(card.free for card in cards), "1 GPU" if len(cards) == 1 else f"{len(cards)} GPUs"
    return f"resources.trainer: {asked}: of {there} the engines leave {left:g}; ask for less, or for fewer engines"
