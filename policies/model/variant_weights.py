"""The weights of a variant: the base's, and what finished runs changed in them, taken apart and added up."""

import zlib
from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor

from layersweep.policies.variant import RunChange, Variant


def variant_weights(
    variant: Variant, base: Mapping[str, Tensor], overlays: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights in which a variant may differ from the base, in the overlays' dtype; their changes, float32.

    Args:
        base: the base's weights by Hugging Face name, in any dtype.
        overlays: trained weights of each run, by selection.
    """
    total: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for change in variant.changes:
        overlay = overlays[change.selection]
        for name, delta in changed(change, base, overlay).items():
            total[name] = total[name] + change.strength * delta if name in total else change.strength * delta
            # As the runs' trainers have it: rounded to their dtype.
            weights[name] = base[name].to(overlay[name].dtype)
    return {name: (weights[name].float() + delta).to(weights[name].dtype) for name, delta in total.items()}, total


def stack_weights(files: Mapping[str, float], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of finished runs added up: by Hugging Face name, those in which they may differ from the base.

    Args:
        files: safetensors of the runs' trained weights, each with the factor of its change of the base. One alone with
            factor 1 is returned as it is.
        base: the base's weights.
    """
    overlays = {file: load_file(file) for file in files}
    if list(files.values()) == [1.0]:
        return overlays.popitem()[1]
    changes = tuple(RunChange(file, strength) for file, strength in files.items())
    return variant_weights(Variant("", changes), base, overlays)[0]


def changed(change: RunChange, base: Mapping[str, Tensor], overlay: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a run's change, float32, by Hugging Face name: of the parameters that are kept."""
    kept, without = change.keep, change.leave_out
    deltas = {
        name: weight.float() - base[name].to(weight.dtype).float()
        for name, weight in overlay.items()
        if (kept is None or kept.trains(name)) and not (without and without.trains(name))
    }
    if change.rank is not None:
        deltas = {name: low_rank(delta, change.rank) for name, delta in deltas.items()}
    if change.largest is not None:
        deltas = largest_entries(deltas, change.largest)
    if change.random:
        draw = f" {change.draw}" if change.draw else ""
        deltas = {name: random_like(delta, f"{change.selection} {name}{draw}") for name, delta in deltas.items()}
    return deltas


def low_rank(delta: Tensor, rank: int) -> Tensor:
    """Return the nearest matrix of a rank in the L2 norm (Eckart and Young 1936), of each expert; a vector as it is."""
    if delta.dim() < 2 or rank >= min(delta.shape[-2:]):
        return delta
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]


def largest_entries(deltas: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the changes with all but a share of their entries 0: those that are largest among all tensors' stay."""
    sizes = torch.cat([delta.abs().flatten() for delta in deltas.values()])
    count = max(1, round(share * len(sizes)))
    least = sizes.topk(count).values[-1]
    return {name: delta.where(delta.abs() >= least, 0.0) for name, delta in deltas.items()}


def random_like(delta: Tensor, seed: str) -> Tensor:
    """Return normally distributed entries with the L2 norm of `delta`; the same for the same seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    drawn = torch.randn(delta.shape, generator=generator)
    return drawn * (delta.norm() / drawn.norm())
