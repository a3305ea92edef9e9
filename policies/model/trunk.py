"""The frozen base and the policy over it: nothing below the trained blocks has a graph, nothing frozen a copy."""

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from layersweep.policies.selection import EMBEDDING, Selection

from .architecture import GpuKernels
from .block_inputs import BlockInputs
from .families import FAMILIES
from .fused_cpu import fuse as fuse_cpu
from .low_rank import add_adapters, merged
from .pretrained import load_pretrained
from .tensor_transport import to_handles, to_tensors
from .token_logprobs import LogprobHead
from .tree_attention import NAME
from .tree_batch import MicroBatch
from .varlen_check import takes_varlen

logger = logging.getLogger(__name__)


class Trunk:
    """The frozen base model, read-only.

    `from_pretrained` in the dtype stored on disk maps the safetensors file, so every trainer of a node shares
    its pages. The trunk is deliberately no nn.Module: nothing that walks modules (DeepSpeed's broadcast, cast
    and partition) can reach it.

    Args:
        model: of transformers.
        attention: `training.attention` of the spec.
        computes: whether it is used here; else it is only shared, and no kernel is chosen for it.

    Raises:
        WrongKernel: by `auto` on a GPU, see `varlen_check`.
    """

    def __init__(self, model: nn.Module, attention: str = "masked", computes: bool = True):
        model.set_attn_implementation(NAME)
        self.model = model.eval().requires_grad_(False)
        self.model.lm_head.__class__ = LogprobHead
        self.fused = computes and _fuse(model)
        """Whether norms and rotary embeddings are fused."""
        self.layers: list[nn.Module] = list(model.model.layers)
        self.varlen = computes and attention == "auto" and takes_varlen(model)
        """Whether micro batches are packed for `varlen_attention`."""

    @property
    def kernels(self) -> GpuKernels:
        """Kernels of GPUs that it is computed with, as its memory is counted by them."""
        family = FAMILIES[type(self.model).__name__]
        return GpuKernels(self.varlen, self.fused and self.model.device.type == "cuda" and family.fused_on_gpus)

    @classmethod
    def load(
        cls, path: str, dtype: str, device: str = "cpu", trust_remote_code: bool = False, attention: str = "masked",
        computes: bool = True,
    ) -> "Trunk":  # fmt: skip
        """Load a model folder in a dtype, given by its torch name."""
        return cls(load_pretrained(path, dtype, trust_remote_code).to(device), attention, computes)

    def share(self) -> dict[str, Any]:
        """Return what another process on the same GPU needs to attach to this trunk, which must outlive it."""
        return {"config": self.model.config, "weights": to_handles(self.tensors())}

    def tensors(self) -> dict[str, Tensor]:
        """Return all weights and buffers by name."""
        return self.model.state_dict(keep_vars=True) | dict(self.model.named_buffers())

    @classmethod
    def attach(cls, shared: dict[str, Any], device: torch.device, attention: str = "masked") -> "Trunk":
        """Open a trunk that another process on the same GPU shared: its memory, not a copy."""
        config = shared["config"]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        weights = to_tensors(shared["weights"], device)
        model.load_state_dict({name: weights.pop(name) for name in model.state_dict()}, assign=True)
        model.tie_weights()
        for name, buffer in weights.items():  # not in the state dict, such as rotary frequencies
            module, _, own = name.rpartition(".")
            setattr(model.get_submodule(module), own, buffer)
        return cls(model, attention)

    def digest(self) -> str:
        """Return the XXH3-128 hash of all weights; it changes only if shared memory was written to."""
        digest = xxhash.xxh3_128()
        for name, tensor in sorted(self.model.state_dict(keep_vars=True).items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def prefix(self, batch: MicroBatch, stop: int) -> Tensor:
        """Compute the input of block `stop`: hidden states [1, T, hidden], without a graph."""
        return run_blocks(self.model.model, batch, self.model.model.embed_tokens(batch.input_ids), self.layers[:stop])

    @torch.no_grad()
    def reference(self, batch: MicroBatch, hidden: Tensor, start: int, temperature: float) -> Tensor:
        """Compute the base model's log-probabilities [N] from the input of block `start`."""
        hidden = run_blocks(self.model.model, batch, hidden, self.layers[start:])
        return response_logprobs(self.model, batch, hidden, temperature)[0]


def _fuse(model: nn.Module) -> bool:
    """Fuse a decoder's modules where that saves time; return whether they are."""
    if model.device.type == "cuda":
        try:
            from .fused_gpu import fuse_checked  # liger-kernel comes with layersweep[gpu] alone
        except Exception as missing:  # of Triton, which looks for the machine's compiler and driver
            logger.warning("Updates are slower than with Liger's kernels (pip install 'layersweep[gpu]'): %s", missing)
            return False
        return fuse_checked(model)
    if model.device.type == "cpu" and model.dtype == torch.float32:
        fuse_cpu(model)
        return True
    return False


class Policy(nn.Module):
    """The trained copy of a selection's parameters, computing through the frozen trunk.

    `trained` has the model's modules, and of its parameters registered those of the selection alone; the others are the
    trunk's own tensors. So an optimizer, a checkpoint or a broadcast over this module sees the selection and nothing
    else.
    """

    checkpointing: bool = False
    """See `run_blocks`; the same on all ranks, or at ZeRO 3 they wait for each other."""

    def __init__(self, trunk: Trunk, selection: Selection):
        super().__init__()
        self._trunk = (trunk,)  # in a tuple, so that it is not registered
        self.selection = selection
        self.entropy_gradient = False
        """Whether entropies have a graph, as an entropy bonus needs it."""
        self.trained = trained_copy(trunk.model, selection)
        self.start = None if selection.trains(EMBEDDING) else selection.first_block(len(trunk.layers))
        """The first block that gradients pass through; None where they reach the embedding."""
        self._served: dict[str, Tensor] = {}

    @property
    def trunk(self) -> Trunk:
        return self._trunk[0]

    def forward(self, batch: MicroBatch, hidden: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities [N] with graph, and entropies [N], of the response tokens, float32.

        Args:
            batch: the packed responses.
            hidden: the input of block `start` from Trunk.prefix; None where the embedding trains.
            temperature: of the sampling distribution.
        """
        decoder = self.trained.model
        if hidden is None:
            hidden = decoder.embed_tokens(batch.input_ids)
        hidden = run_blocks(decoder, batch, hidden, list(decoder.layers)[self.start :], self.checkpointing)
        return response_logprobs(self.trained, batch, hidden, temperature, self.entropy_gradient)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by Hugging Face name; a tied LM head appears once, as the embedding. Adapters
        are named as peft names them, after their module: model.layers.3.mlp.up_proj.lora_A."""
        return dict(self.trained.named_parameters())

    @torch.no_grad()
    def served(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that engines serve and folders keep, by Hugging Face name, valid until the next call.

        Args:
            trained: the trained parameters by the names of `named_weights`. Adapters are merged into their matrices,
                in the same memory at every call; all others are what is served.
        """
        if self.selection.lora is None:
            return dict(trained)
        base = dict(self.trunk.model.named_parameters())
        for name, weight in merged(trained, base, self.selection.lora.scale):
            self._served.setdefault(name, torch.empty_like(weight)).copy_(weight)
        return self._served


def trained_copy(model: nn.Module, selection: Selection) -> nn.Module:
    """Return a copy of a model in which a selection's parameters, or adapters beside them, are new and train.

    All other weights are the tensors of `model`, as plain attributes of the copy's modules.
    """
    own = () if selection.lora else [name for name, _ in model.named_parameters() if selection.trains(name)]
    frozen = {id(weight): weight for name, weight in model.named_parameters() if name not in own}
    copied = copy.deepcopy(model, dict(frozen))  # which takes what the memo holds for copied already
    for module in copied.modules():
        for name, weight in list(module._parameters.items()):
            if id(weight) in frozen:
                del module._parameters[name]
                setattr(module, name, weight.detach())
    if selection.lora:
        add_adapters(copied, selection)
    return copied.requires_grad_(True)


def run_blocks(
    decoder: nn.Module, batch: MicroBatch, hidden: Tensor, blocks: Iterable[nn.Module], checkpointing: bool = False
) -> Tensor:
    """Run hidden states [1, T, hidden] through decoder blocks, with attention over the batch's trees.

    Args:
        checkpointing: keep each block's input alone for the backward pass, which computes the block again.
    """
    inputs = BlockInputs(decoder, batch, hidden)
    for block in blocks:
        given = inputs.of(block)
        if checkpointing:
            # At ZeRO 3 a parameter that is not gathered is empty, and so does not look like itself computed again.
            hidden = checkpoint(
                block, hidden, **given, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
            )
        else:
            hidden = block(hidden, **given)
    return hidden


def response_logprobs(
    model: nn.Module, batch: MicroBatch, hidden: Tensor, temperature: float, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [N] of the response tokens and entropies [N] of their distributions.

    Only the N predicting positions go through the final norm and the LM head; float32 from the logits on.
    """
    chosen = hidden.flatten(0, 1).index_select(0, batch.predictor)
    return model.lm_head(model.model.norm(chosen), batch.target, temperature, entropy_gradient)
