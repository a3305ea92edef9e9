"""Arguments of a decoder's blocks beside hidden states: the mask, positions and rotary embeddings of their kind."""

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from .tree_attention import Mask, as_added, within_window
from .tree_batch import MicroBatch


class BlockInputs:
    """Arguments of the blocks of one forward pass over a batch, made once for each kind of block.

    Kinds differ in their sliding window and, in some families, in their table of rotary embeddings.

    Args:
        decoder: of transformers.
        hidden: the hidden states [1, T, hidden], for their dtype and device.
    """

    def __init__(self, decoder: nn.Module, batch: MicroBatch, hidden: Tensor):
        self.decoder, self.batch, self.hidden = decoder, batch, hidden
        self._masks: dict[int | None, Mask] = {}
        self._rotary: dict[str | None, tuple[Tensor, Tensor]] = {}

    def of(self, block: nn.Module) -> dict[str, Any]:
        """Return the keyword arguments of a block."""
        config, k = self.decoder.config, block.self_attn.layer_idx
        kind = kind_of_block(config, k)
        rotary = kind if hasattr(self.decoder.rotary_emb, "layer_types") else None
        if rotary not in self._rotary:
            which = () if rotary is None else (rotary,)
            self._rotary[rotary] = self.decoder.rotary_emb(self.hidden, self.batch.position_ids, *which)
        window = config.sliding_window if kind == "sliding_attention" else None
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return {
            "attention_mask": self._masks[window],
            "position_ids": self.batch.position_ids,
            "position_embeddings": self._rotary[rotary],
        }

    def _mask(self, window: int | None) -> Mask:
        mask = self.batch.mask
        positions = self.batch.position_ids
        if window is not None and positions.shape[1] > window:  # asking for the last position would wait for a GPU
            mask = within_window(mask, positions, window)
        return mask if self.hidden.device.type == "cpu" else as_added(mask, self.hidden.dtype)


def kind_of_block(config: PretrainedConfig, k: int) -> str:
    """Return full_attention or sliding_attention, as block `k` of transformers' model attends."""
    if kinds := getattr(config, "layer_types", None):
        return kinds[k]
    return "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
