"""The frozen base and the policy over it: nothing below the trained blocks has a graph, nothing frozen a copy."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from layersweep.policies.selection import Selection

from .fused_cpu import fuse
from .pretrained import load_pretrained
from .tensor_transport import to_handles, to_tensors
from .token_logprobs import LogprobHead
from .tree_attention import NAME
from .tree_batch import MicroBatch


class Trunk:
    """The frozen base model, read-only.

    `from_pretrained` in the dtype stored on disk maps the safetensors file, so every trainer of a node shares
    its pages. The trunk is deliberately no nn.Module: nothing that walks modules (DeepSpeed's broadcast, cast
    and partition) can reach it.
    """

    def __init__(self, model: nn.Module):
        model.set_attn_implementation(NAME)
        self.model = model.eval().requires_grad_(False)
        self.model.lm_head.__class__ = LogprobHead
        if model.device.type == "cpu" and model.dtype == torch.float32:
            fuse(model)
        self.layers: list[nn.Module] = list(model.model.layers)

    @classmethod
    def load(cls, path: str, dtype: str, device: str = "cpu", trust_remote_code: bool = False) -> "Trunk":
        """Load a model folder in a dtype, given by its torch name."""
        return cls(load_pretrained(path, dtype, trust_remote_code).to(device))

    def share(self) -> dict[str, Any]:
        """Return what another process on the same GPU needs to attach to this trunk, which must outlive it."""
        return {"config": self.model.config, "weights": to_handles(self.model.state_dict(keep_vars=True))}

    @classmethod
    def attach(cls, shared: dict[str, Any], device: torch.device) -> "Trunk":
        """Open a trunk that another process on the same GPU shared: its memory, not a copy."""
        config = shared["config"]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(to_tensors(shared["weights"], device), assign=True)
        model.tie_weights()
        # Not in the state dict: frequencies are recomputed, where `load` has them computed.
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
        return cls(model)

    def digest(self) -> str:
        """Return the XXH3-128 hash of all weights; it changes only if shared memory was written to."""
        digest = xxhash.xxh3_128()
        for name, tensor in sorted(self.model.state_dict(keep_vars=True).items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def prefix(self, batch: MicroBatch, stop: int) -> Tensor:
        """Compute the input of block `stop`: hidden states [B, T, hidden], without a graph."""
        return run_blocks(self.model.model, batch, self.model.model.embed_tokens(batch.input_ids), self.layers[:stop])

    @torch.no_grad()
    def reference(self, batch: MicroBatch, hidden: Tensor, start: int, temperature: float) -> Tensor:
        """Compute the base model's log-probabilities [N] from the input of block `start`."""
        hidden = run_blocks(self.model.model, batch, hidden, self.layers[start:])
        return response_logprobs(self.model, batch, hidden, temperature)[0]


class Policy(nn.Module):
    """The trained copy of a selection's parameters, computing through the frozen trunk.

    Registered as submodules are the trained blocks alone (or for `full` a whole copy of the model), so an
    optimizer, a checkpoint or a broadcast over this module sees the selection and nothing else.
    """

    def __init__(self, trunk: Trunk, selection: Selection):
        super().__init__()
        self._trunk = (trunk,)  # in a tuple, so that it is not registered
        self.selection = selection
        self.entropy_gradient = False
        """Whether entropies have a graph, as an entropy bonus needs it."""
        if selection.trains_all:
            self.trained: nn.Module = copy.deepcopy(trunk.model)
            self.start = 0
        else:
            self.trained = nn.ModuleDict({str(k): copy.deepcopy(trunk.layers[k]) for k in selection.layers})
            self.start = min(selection.layers)
        self.trained.requires_grad_(True)

    @property
    def trunk(self) -> Trunk:
        return self._trunk[0]

    def forward(self, batch: MicroBatch, hidden: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities [N] with graph, and entropies [N], of the response tokens, float32.

        Args:
            batch: the packed responses.
            hidden: the input of the first trained block from Trunk.prefix; None for `full`.
            temperature: of the sampling distribution.
        """
        if self.selection.trains_all:
            model, blocks = self.trained, list(self.trained.model.layers)
            hidden = model.model.embed_tokens(batch.input_ids)
        else:
            model = self.trunk.model
            blocks = [
                self.trained[str(k)] if str(k) in self.trained else layer for k, layer in enumerate(self.trunk.layers)
            ][self.start :]
        hidden = run_blocks(model.model, batch, hidden, blocks)
        return response_logprobs(model, batch, hidden, temperature, self.entropy_gradient)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by Hugging Face name; a tied LM head appears once, as the embedding."""
        if self.selection.trains_all:
            return dict(self.trained.named_parameters())
        return {f"model.layers.{name}": weight for name, weight in self.trained.named_parameters()}


def run_blocks(decoder: nn.Module, batch: MicroBatch, hidden: Tensor, blocks: Iterable[nn.Module]) -> Tensor:
    """Run hidden states [B, T, hidden] through decoder blocks under the batch's tree mask."""
    rotary = decoder.rotary_emb(hidden, batch.position_ids)
    for block in blocks:
        hidden = block(hidden, attention_mask=batch.mask, position_ids=batch.position_ids, position_embeddings=rotary)
    return hidden


def response_logprobs(
    model: nn.Module, batch: MicroBatch, hidden: Tensor, temperature: float, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [N] of the response tokens and entropies [N] of their distributions.

    Only the N predicting positions go through the final norm and the LM head; float32 from the logits on.
    """
    chosen = hidden.flatten(0, 1).index_select(0, batch.predictor)
    return model.lm_head(model.model.norm(chosen), batch.target, temperature, entropy_gradient)
