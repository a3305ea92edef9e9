"""Norms, rotary embeddings and gated products of decoders in fewer passes over memory than transformers' own modules.

What CPUs (`fused_cpu`) and GPUs (`fused_gpu`) share: which modules are replaced, and attention around them.
"""

from typing import Any

from torch import Tensor, nn
from transformers import Cache
from transformers.activations import SiLUActivation

from .tree_attention import tree_attention

ATTENTIONS = ("Llama", "Mistral", "Qwen2", "Qwen3", "Qwen3Moe")
NORMS = (*ATTENTIONS, "Olmo2", "Olmo3", "Phi3")
MLPS = (*ATTENTIONS, "Olmo2", "Olmo3")
"""Families of transformers' modules <family>Attention, <family>RMSNorm and <family>MLP that are replaced by equal
ones."""


class FusedAttention(nn.Module):
    """Replacement for transformers' <family>Attention, with the same attributes."""

    @staticmethod
    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Apply rotary embeddings to queries and keys [B, T, heads, head_dim]; cosines and sines are [B, T, head_dim].

        May compute in the memory of queries and keys.
        """
        raise NotImplementedError

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend within [B, T, hidden]; cosines and sines are [B, T, head_dim]."""
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = self.rotate(query, key, *position_embeddings)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if past_key_values is not None:  # transformers' own callers, such as generate; training has none
            key, value = past_key_values.update(key, value, self.layer_idx)
        result, _ = tree_attention(self, query, key, value, attention_mask, scaling=self.scaling)
        return self.o_proj(result.flatten(2)), None


def replace_modules(model: nn.Module, norm: type, attention: type, mlp: type | None = None) -> nn.Module:
    """Replace modules of transformers' decoders, in place, by those of the given classes; weights stay the same.

    Args:
        mlp: for feed-forward networks gated by SiLU.
    """
    for module, kind in replacements(model, norm, attention, mlp):
        module.__class__ = kind
    return model


def replacements(
    model: nn.Module, norm: type, attention: type, mlp: type | None = None
) -> list[tuple[nn.Module, type]]:
    """Return the modules that `replace_modules` replaces, each with its new class."""
    parts = {f"{family}RMSNorm": norm for family in NORMS} | {f"{family}Attention": attention for family in ATTENTIONS}
    parts |= {f"{family}MLP": mlp for family in MLPS if mlp}
    return [
        (module, parts[kind.__name__])
        for module in model.modules()
        if (kind := type(module)).__name__ in parts
        and kind.__module__.startswith("transformers.models.")
        and isinstance(getattr(module, "act_fn", SiLUActivation()), SiLUActivation | nn.SiLU)
    ]
