"""Static slots: where a CUDA graph finds the weights of each row's run.

A CUDA graph replays the kernels of one recorded forward pass on the same addresses, with the same shapes. So whatever
changes from one batch to the next must be data at a fixed address:

- **Weights.** At each module that runs change, the base's weights and theirs lie in one stack [slots, ...]. Slot 0 is
  the base's: vLLM's own parameter moves there, and is a view of it. A run holds one slot; a push writes into it, a run
  that ends leaves it to the next one.
- **Rows.** Which slot computes which row is in index buffers, filled before each replay; padding is the base's.

**Structure** is what a recording bakes in: the stacks' sizes and addresses, and which modules share index buffers.
Modules of one block do as long as the same runs hold the same slots in them; then the group is split, and never joined
again. A new structure needs a new recording; new weights, other runs in the same slots and other row counts need none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from vllm.utils.torch_utils import async_tensor_h2d

from .row_routing import BASE, RowRouting

HEAD = "lm_head"
"""Module that vLLM computes outside of the graph, on the rows that are sampled: its copies hold no slots."""


@dataclass(frozen=True)
class SlotRows:
    """Rows of a batch, as the modules of one group see them: views of buffers at fixed addresses, int32."""

    index: Tensor
    """Slot of each row's weights [rows]."""
    order: Tensor
    """Rows, slot by slot [rows]."""
    places: Tensor
    """Place of each row in that order [rows]."""
    ends: Tensor
    """End of each slot's rows in that order [slots]."""


class WeightSlots:
    """Stacks of runs' weights, and the rows of a batch that goes through them.

    Args:
        model: whose parameters are the base's weights.
        modules: copies of its modules with weights, by name; their parameters tell shapes alone.
        max_rows: rows of the largest batch that is recorded.
        device: of the weights.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module], max_rows: int, device: torch.device):
        self.model, self.modules, self.max_rows, self.device = model, modules, max_rows, device
        self.active = False
        """Whether modules compute rows from slots: while a graph is recorded."""
        self.structure = 0
        """Number of the present structure."""
        self._held: dict[str, dict[str, int]] = {}
        """Each run's slot in each module, from 1 on."""
        self._copies: dict[str, Mapping[str, nn.Module]] = {}
        """Each run's modules, whose parameters are its slots."""
        self._make_empty()

    def clear(self) -> None:
        """Free all stacks, if there are any, and give the base its own memory again; no run may hold a slot."""
        if self._held:
            raise RuntimeError(f"slots are held by {', '.join(self._held)}")
        if not self._stacks:
            return
        for name in filter(self.has, self.modules):
            for parameter, own in self.modules[name].named_parameters(recurse=False):
                del self._stacks[id(own)]  # one by one: there may be no room for all of the base twice
                base = self._base(name)[parameter]
                base.data = base.data.clone()
        self._make_empty()

    def take(self, run: str, names: Iterable[str]) -> dict[int, nn.Parameter]:
        """Give a run slots in these modules, or those that it holds.

        Returns:
            Parameters in the slots' memory, by the id of the parameter of `modules` that each stands for.
        """
        held, memory, before = self._held.setdefault(run, {}), {}, dict(self._capacity)
        try:
            for name in sorted(names, key=lambda name: name == HEAD):  # a tied head's weight is then the embedding's
                own = dict(self.modules[name].named_parameters(recurse=False))
                if name == HEAD:
                    memory |= {id(p): with_data(p, torch.empty(p.shape, dtype=p.dtype, device=self.device))
                               for p in own.values() if id(p) not in memory}  # fmt: skip
                    continue
                taken = {other[name] for other in self._held.values() if name in other}
                slot = held.get(name) or next(i for i in range(1, len(taken) + 2) if i not in taken)
                if slot > self._capacity[name]:
                    self._grow(name)
                held[name] = slot
                memory |= {id(p): with_data(p, self._stacks[id(p)][slot]) for p in own.values()}
        finally:  # also where a GPU is full: what has moved until then is no longer where graphs read it
            if self._split() or self._capacity != before:
                self._restructure()
        return memory

    def adopt(self, run: str, copies: Mapping[str, nn.Module]) -> None:
        """Note the run's modules over its slots, which follow when a stack moves."""
        self._copies[run] = copies

    def free(self, run: str) -> None:
        """Leave the run's slots to other runs."""
        self._held.pop(run, None)
        self._copies.pop(run, None)

    def has(self, name: str) -> bool:
        """Return whether a module's weights are in stacks."""
        return self._capacity[name] > 0

    def stack(self, name: str, parameter: str) -> Tensor | None:
        """Return the stack [slots, ...] of a module's parameter; None where the module has no such parameter."""
        own = self.modules[name]._parameters.get(parameter)
        return None if own is None else self._stacks[id(own)]

    def rows(self, name: str, count: int) -> SlotRows:
        """Return the buffers of a module for a batch of so many rows."""
        group, slots = self._group_of[name], self._capacity[name]
        index, order, places = self._rows[:, group, :count]
        return SlotRows(index, order, places, self._ends[group, : 1 + slots])

    def fill(self, routing: RowRouting | None, count: int) -> None:
        """Write a batch's rows into the buffers, padded with the base's to `count`; None is the base's alone."""
        runs = routing.names if routing else ()
        of_row = np.full(count, BASE)
        if routing:
            of_row[: len(routing.of_token)] = routing.of_token
        firsts = [members[0] for members in self._groups]
        of_run = [[self._held[run].get(name, 0) for name in firsts] for run in runs]
        slot = np.array([*of_run, [0] * len(firsts)], np.int32)[of_row].T  # BASE is the last
        order = np.argsort(slot, axis=1, kind="stable")
        places = np.empty_like(order)
        np.put_along_axis(places, order, np.arange(count)[None], axis=1)
        ends = (slot[:, None] <= np.arange(self._ends.shape[1])[:, None]).sum(2)
        rows = np.stack([slot, order, places]).astype(np.int32)
        for buffer, values in ((self._rows[:, :, :count], rows), (self._ends, ends.astype(np.int32))):
            async_tensor_h2d(values, out=buffer)  # from pinned memory, so that it waits for nothing

    def _make_empty(self) -> None:
        """Begin without a stack, and with a group for each block and each module outside of blocks."""
        self._stacks: dict[int, Tensor] = {}
        blocks: dict[str, list[str]] = {}
        for name in self.modules:
            numbers = [i for i, part in enumerate(name.split(".")) if part.isdigit()]
            blocks.setdefault(".".join(name.split(".")[: numbers[0] + 1]) if numbers else name, []).append(name)
        self._groups = list(blocks.values())
        self._capacity = dict.fromkeys(self.modules, 0)
        self._restructure()

    def _base(self, name: str) -> dict[str, nn.Parameter]:
        """Return the base's own parameters of a module."""
        return dict(self.model.get_submodule(name).named_parameters(recurse=False))

    def _grow(self, name: str) -> None:
        """Add a slot to a module's stacks, which move, and with them the parameters of the base and of the runs."""
        size, base = self._capacity[name] + 1, self._base(name)
        own = dict(self.modules[name].named_parameters(recurse=False))
        made = {  # all of them before any moves: there may be no room
            parameter: torch.empty(1 + size, *p.shape, dtype=p.dtype, device=self.device)
            for parameter, p in own.items()
        }
        for parameter, stack in made.items():
            stack[:size] = self._stacks.get(id(own[parameter]), base[parameter].data[None])
            self._stacks[id(own[parameter])], base[parameter].data = stack, stack[0]
            for run, copies in self._copies.items():
                if name in copies:
                    old, slot = copies[name]._parameters[parameter].data_ptr(), stack[self._held[run][name]]
                    for copied in copies.values():  # a tied head has the embedding's memory in a parameter of its own
                        for mine in copied.parameters(recurse=False):
                            if mine.data_ptr() == old:
                                mine.data = slot
        self._capacity[name] = size

    def _split(self) -> bool:
        """Split the groups whose modules' slots are no longer held alike; return whether there was one."""
        groups = []
        for members in self._groups:
            alike: dict[tuple[int, ...], list[str]] = {}
            for name in members:
                alike.setdefault(tuple(held.get(name, 0) for held in self._held.values()), []).append(name)
            groups += alike.values()
        changed, self._groups = len(groups) > len(self._groups), groups
        return changed

    def _restructure(self) -> None:
        """Make the index buffers anew."""
        self.structure += 1
        self._group_of = {name: i for i, members in enumerate(self._groups) for name in members}
        count, slots = len(self._groups), max(self._capacity.values())
        self._rows = torch.zeros(3, count, self.max_rows, dtype=torch.int32, device=self.device)
        self._ends = torch.zeros(count, 1 + slots, dtype=torch.int32, device=self.device)


def with_data(parameter: nn.Parameter, data: Tensor) -> nn.Parameter:
    """Return a new parameter of the same kind, with what vLLM's loader notes on it."""
    new = torch.Tensor._make_subclass(type(parameter), data, False)
    new.__dict__.update(parameter.__dict__)
    return new
