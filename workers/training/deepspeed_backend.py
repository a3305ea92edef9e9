"""DeepSpeed behind the trainer's seam: ZeRO 0 to 3, float32 or bfloat16, on CPUs and GPUs."""

import math
from collections.abc import Iterator

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from layersweep.policies.model.tree_batch import MicroBatch
from layersweep.policies.model.trunk import Policy
from layersweep.workers.config import DeepSpeedConfig, TrainingConfig

from .backend import NonFinite, WrongCheckpoint
from .optimizer import make_optimizer

MASTER, OPTIMIZER = "master/", "optimizer/"


def deepspeed_settings(training: TrainingConfig, section: DeepSpeedConfig, full: bool, ranks: int) -> dict:
    """Return DeepSpeed's own configuration. Accumulation is ours (set_gradient_accumulation_boundary), hence the ones.

    Args:
        full: whether every parameter trains.
    """
    stage = section.full_zero_stage if full else section.layer_zero_stage
    zero: dict = {"stage": stage}
    if full and section.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.gradient_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # offloaded too: torch's AdamW, and no compiler on every node
        "bf16": {"enabled": training.dtype == "bfloat16"},
        # Sums over micro batches and ranks. At ZeRO 0 DeepSpeed has no choice of it, see DeepSpeedBackend.
        "data_types": {"grad_accum_dtype": "fp32" if stage else None},
        "communication_data_type": "fp32",
    }


class DeepSpeedBackend:
    """A `TrainerBackend` over a torch optimizer in a DeepSpeed engine; torch.distributed is initialised.

    Checkpoints do not use DeepSpeed's own format, pickles with one layout per ZeRO stage. Below all stages lies one
    torch optimizer over tensors of this rank: the parameters themselves (ZeRO 0 in float32) or float32 masters of them,
    flat and partitioned. These and the optimizer's state are saved by position.

    Args:
        policy: what trains, made on this rank.
        training, section: `training` and `deepspeed` of the spec.
        ranks: data-parallel ranks of the run.
    """

    def __init__(self, policy: Policy, training: TrainingConfig, section: DeepSpeedConfig, ranks: int = 1):
        self.ranks, self.dtype = ranks, training.dtype
        # The optimizer is made at a rate of 0: in bfloat16 at ZeRO 0 DeepSpeed makes a step of its own, with gradients
        # of 0, to allocate the moments. It must neither decay the master weights nor count in the bias correction.
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=policy,
            optimizer=make_optimizer(policy, training),
            config=deepspeed_settings(training, section, policy.selection.trains_all, ranks),
            dist_init_required=False,
        )
        self.policy: Policy = self.engine.module
        self.stage: int = self.engine.zero_optimization_stage()
        self.sharded = self.stage > 0
        if self.stage == 0:
            self.engine.basic_optimizer.state.clear()
            for parameter in policy.parameters():
                parameter.grad = None
                parameter.grad_dtype = torch.float32  # autograd sums in it

    def forward(self, batch: MicroBatch, hidden: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
        return self.engine(batch, hidden, temperature)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        norm = None
        if self.stage == 0:  # in float32 DeepSpeed computes none here, in bfloat16 that of rounded gradients
            norm = _finite(torch.nn.utils.get_total_norm([p.grad for p in self.policy.parameters()]))
        self.engine.step()
        return norm if norm is not None else _finite(self.engine.get_global_grad_norm())

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters' own memory; at ZeRO 3, where no rank has them whole, rank 0's copies on its host."""
        if self.stage < 3:
            return {name: weight.detach() for name, weight in self.policy.named_weights().items()}
        copies = {}
        for name, weight in self.gathered():
            if dist.get_rank() == 0:
                copies[name] = weight.detach().to("cpu", copy=True)
        return copies

    def gathered(self, writer: int | None = None) -> Iterator[tuple[str, nn.Parameter]]:
        partitioned = self.stage == 3
        for name, weight in self.policy.named_weights().items():
            with deepspeed.zero.GatheredParameters([weight], modifier_rank=writer, enabled=partitioned):
                yield name, weight
            if writer is not None and self.ranks > 1 and not partitioned:
                dist.broadcast(weight.data.view(torch.uint8), writer)

    def state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        seen: set[int] = set()
        own = {id(parameter) for parameter in self.policy.parameters()}
        for index, tensor in self._optimized():
            if id(tensor) not in own:
                state[f"{MASTER}{index}"] = tensor.detach()
            for name, value in self.engine.basic_optimizer.state.get(tensor, {}).items():
                value = torch.as_tensor(value)
                # bitsandbytes has one quantization map for all tensors, and files hold none twice.
                state[f"{OPTIMIZER}{index}/{name}"] = value.clone() if value.data_ptr() in seen else value
                seen.add(value.data_ptr())
        return state

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        left = dict(state)
        for index, tensor in self._optimized():
            if f"{MASTER}{index}" in left:
                _copy(left.pop(f"{MASTER}{index}"), tensor, index)
            prefix = f"{OPTIMIZER}{index}/"
            for name in [name for name in left if name.startswith(prefix)]:
                value = left.pop(name)
                # The moments lie beside the parameter, AdamW's step counter on the host; bitsandbytes' is an int.
                if value.dim():
                    value = value.to(tensor.device)
                elif not value.is_floating_point():
                    value = value.item()
                self.engine.basic_optimizer.state[tensor][name.removeprefix(prefix)] = value
        if left:
            raise WrongCheckpoint(f"the checkpoint holds {len(left)} tensors too many, such as {next(iter(left))}")

    def _optimized(self) -> list[tuple[str, Tensor]]:
        """Return tensors that the torch optimizer works on, by position."""
        if self.stage == 3:  # which lends them to the optimizer during a step alone
            groups = [[part] for part in self.engine.optimizer.fp32_partitioned_groups_flat]
        else:
            groups = [group["params"] for group in self.engine.basic_optimizer.param_groups]
        return [(f"{i}/{j}", tensor) for i, group in enumerate(groups) for j, tensor in enumerate(group)]


def _finite(norm: Tensor | float) -> float:
    if not math.isfinite(norm):
        raise NonFinite(f"gradient norm is {float(norm)}")
    return float(norm)


def _copy(source: Tensor, target: Tensor, index: str) -> None:
    if source.shape != target.shape:
        raise WrongCheckpoint(f"optimizer tensor {index} has {tuple(source.shape)}, needed {tuple(target.shape)}")
    target.copy_(source)
