"""Every loss against TRL's own on 100 random padded batches: value, and gradient by each token's log-probability."""

import numpy as np
import pytest
import torch

from layersweep.policies.algorithms.cispo import CISPO
from layersweep.policies.algorithms.dapo import DAPO
from layersweep.policies.algorithms.dr_grpo import DrGRPO
from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.algorithms.gspo import GSPO
from layersweep.policies.algorithms.loss import LossTokens, token_weights
from layersweep.policies.algorithms.rollout_correction import importance_weights
from layersweep.policies.algorithms.sapo import SAPO

LIMIT, GROUPS, SIZE = 12, 5, 4
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@pytest.fixture(scope="module")
def trainer(model_folder, tmp_path_factory):
    """A GRPOTrainer whose loss is asked for, its settings changed between calls."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from layersweep.workers.startup.tiny_model_training import character_tokenizer

    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to="none",
            per_device_train_batch_size=GROUPS * SIZE, num_generations=SIZE, max_completion_length=LIMIT,
            gradient_checkpointing=False, use_bias_correction_kl=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 20),
        processing_class=character_tokenizer("abcdefghijklmnopqrstuvwxyzABCD"),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # its training loop sets it
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True  # its loss then has importance weights
    return trainer


def random_batch(seed: int, spread: float) -> dict[str, torch.Tensor]:
    """Padded rows: log-probabilities now, before, by the engine and the base; one group of five without signal."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LIMIT + 1, GROUPS * SIZE)
    mask = np.arange(LIMIT) < lengths[:, None]
    reward = rng.integers(0, 2, GROUPS * SIZE).astype(np.float32)
    reward[-SIZE:] = 1.0
    old = rng.normal(-2.0, 0.7, mask.shape)
    noisy = {
        name: old + rng.normal(0, scale, mask.shape) for name, scale in (("now", spread), ("engine", 0.3), ("ref", 0.5))
    }
    noisy["entropy"] = rng.uniform(0.0, 3.0, mask.shape)
    columns = {name: torch.tensor(values, dtype=torch.float32) for name, values in ({"old": old} | noisy).items()}
    return columns | {
        "mask": torch.from_numpy(mask), "lengths": torch.from_numpy(lengths), "reward": torch.from_numpy(reward)
    }  # fmt: skip


def trl_importance(correction: str, batch, cap: float) -> torch.Tensor:
    """As TRL's `_generate_and_score_completions` writes it, in padded form."""
    difference = (batch["old"] - batch["engine"]) * batch["mask"]
    if correction.startswith("sequence"):
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = torch.exp(difference)
    if correction == "none":
        return torch.ones_like(ratio)
    if correction.endswith("truncate"):
        return torch.clamp(ratio, max=cap)
    return ratio.masked_fill(ratio > cap, 0.0)


def ours(algorithm, correction: str, advantage: np.ndarray, batch, rng) -> tuple[float, torch.Tensor]:
    """Loss and gradient [rows, LIMIT], summed over micro batches of whole responses in any order."""
    weight = token_weights(batch["lengths"], algorithm.aggregation, LIMIT)
    logp, entropy = (batch[name].clone().requires_grad_() for name in ("now", "entropy"))
    total = 0.0
    for rows in np.array_split(rng.permutation(len(weight)), rng.integers(1, 7)):
        mask = torch.zeros_like(batch["mask"])
        mask[rows] = batch["mask"][rows]
        row = mask.nonzero()[:, 0]
        old = batch["old"][mask]
        importance, _ = importance_weights(correction, old, batch["engine"][mask], row, algorithm.importance_cap)
        ref = batch["ref"][mask] if algorithm.kl_coefficient else None
        terms = algorithm.loss(
            LossTokens(
                logp[mask], old, torch.from_numpy(advantage)[row], weight[row], row, importance, ref, entropy[mask]
            )
        )
        terms.loss.backward()
        total += terms.loss.item()
    return total, gradients(logp, entropy)


def gradients(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """Those by log-probabilities above those by entropies, which are 0 without an entropy bonus."""
    return torch.cat([logp.grad, torch.zeros_like(entropy) if entropy.grad is None else entropy.grad])


def theirs(trainer, monkeypatch, correction: str, advantage: np.ndarray, batch) -> tuple[float, torch.Tensor]:
    logp, entropies = (batch[name].clone().requires_grad_() for name in ("now", "entropy"))
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: (logp, entropies, None))
    rows = torch.ones(len(advantage), 1, dtype=torch.long)
    inputs = {
        "prompt_ids": rows, "prompt_mask": rows,
        "completion_ids": batch["mask"].long(), "completion_mask": batch["mask"].long(),
        "advantages": torch.from_numpy(advantage), "old_per_token_logps": batch["old"],
        "ref_per_token_logps": batch["ref"], "importance_sampling_ratio": trl_importance(correction, batch, 2.0),
        "num_items_in_batch": batch["lengths"].sum().float(),
    }  # fmt: skip
    loss = trainer._compute_loss(None, inputs)
    loss.backward()
    return loss.item(), gradients(logp, entropies)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "settings", "spread"),
    [
        (GRPO(clip_high=0.28), {"loss_type": "grpo", "epsilon_high": 0.28}, 0.3),
        (GRPO(kl_coefficient=0.1), {"loss_type": "grpo", "beta": 0.1}, 0.3),
        (DrGRPO(kl_coefficient=0.2), {"loss_type": "dr_grpo", "beta": 0.2}, 0.3),
        (DAPO(), {"loss_type": "dapo", "epsilon_high": 0.28}, 0.3),
        # The mean entropy of all tokens, for every loss of TRL's; here it has the loss's own aggregation, as in verl.
        (DAPO(entropy_coefficient=0.05), {"loss_type": "dapo", "epsilon_high": 0.28, "_entropy_bonus_enabled": True,
                                          "entropy_coef": 0.05}, 0.3),
        # TRL's two-sided clipping (delta) is dual clip: it bounds the ratio of tokens with A < 0.
        (DAPO(dual_clip=1.5), {"loss_type": "dapo", "epsilon_high": 0.28, "args.delta": 1.5}, 0.3),
        (GSPO(), {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4,
                  "epsilon_high": 4e-4}, 5e-4),
        (GSPO(kl_coefficient=0.1, clip_low=0.1, clip_high=0.2), {"loss_type": "grpo", "beta": 0.1, "epsilon_low": 0.1,
                                                                 "importance_sampling_level": "sequence"}, 0.3),
        (CISPO(), {"loss_type": "cispo", "epsilon_high": 5.0}, 1.0),
        (CISPO(clip_high=0.2, kl_coefficient=0.1), {"loss_type": "cispo", "epsilon_high": 1.2, "beta": 0.1}, 0.3),
        (SAPO(), {"loss_type": "sapo", "args.sapo_temperature_pos": 1.0, "args.sapo_temperature_neg": 1.05}, 0.5),
        (SAPO(temperature_positive=0.5, temperature_negative=3.0),
         {"loss_type": "sapo", "args.sapo_temperature_pos": 0.5, "args.sapo_temperature_neg": 3.0}, 0.5),
    ],
    ids=lambda value: value.get("loss_type") if isinstance(value, dict) else getattr(value, "type", None),
)  # fmt: skip
def test_trl_computes_the_same(trainer, monkeypatch, algorithm, settings, spread):
    standard = {"beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "importance_sampling_level": "token"}
    for name, value in (standard | {"args.delta": None} | settings).items():
        owner = trainer.args if name.startswith("args.") else trainer
        monkeypatch.setattr(owner, name.removeprefix("args."), value)
    group, zeros = np.repeat(np.arange(GROUPS), SIZE), np.zeros(GROUPS * SIZE, int)
    for seed in range(100):
        batch, correction = random_batch(seed, spread), CORRECTIONS[seed % len(CORRECTIONS)]
        advantage = algorithm.advantages(batch["reward"].numpy(), group, np.arange(len(group)), zeros, [])
        loss, gradient = ours(algorithm, correction, advantage, batch, np.random.default_rng(seed))
        expected_loss, expected = theirs(trainer, monkeypatch, correction, advantage, batch)
        assert loss == pytest.approx(expected_loss, abs=2e-6), seed
        assert (gradient - expected).abs().max() < 1e-6, seed
        assert expected[: GROUPS * SIZE].abs().sum() > 0
