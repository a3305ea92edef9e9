"""A user's own algorithm: a class in a file outside the package, named in the spec."""

from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from layersweep.policies.user_code import UserCode, load

from .base import PolicyGradient


class CustomAlgorithm(UserCode):
    """An algorithm or a loss of the user's own: a subclass of `policies.algorithms.base.PolicyGradient`.

    Over `policies.algorithms.clipped.ClippedPolicyGradient` it says in `advantages` how rewards become advantages, over
    `policies.algorithms.group_relative.GroupRelative` in `surrogate` what a token's objective is; over a choice of this
    section, such as `policies.algorithms.grpo.GRPO`, what it changes.
    """

    type: Literal["custom"] = "custom"
    settings: dict[str, Any] = Field({}, validate_default=True)
    """Values of its fields: its own, and those of every algorithm, such as `clip_high`."""

    @field_validator("path")
    @classmethod
    def _names_an_algorithm(cls, path: str) -> str:
        _load(path)
        return path

    @field_validator("settings")
    @classmethod
    def _algorithm_takes_them(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "path" in info.data:
            _try(_make(info.data["path"], settings))
        return settings

    def build(self) -> PolicyGradient:
        """Make the algorithm itself."""
        return _make(self.path, self.settings)


def _load(path: str) -> type[PolicyGradient]:
    found = load(path)
    if not (isinstance(found, type) and issubclass(found, PolicyGradient)):
        raise ValueError(f"{path} is not a subclass of layersweep.policies.algorithms.base.PolicyGradient")
    return found


def _make(path: str, settings: dict[str, Any]) -> PolicyGradient:
    try:
        return _load(path)(**settings)
    except ValidationError as error:
        problems = ("".join(f"{part}: " for part in p["loc"]) + p["msg"] for p in error.errors())
        raise ValueError(f"{path} refuses them: {'; '.join(problems)}") from error


def _try(algorithm: PolicyGradient) -> None:
    """Call `advantages` with four responses, one of them right: each must get a finite float32. Call a loss of its own
    with two tokens each of two responses: it must be finite and have a finite gradient."""
    rows = np.arange(4)
    reward, zeros = np.array([1, 0, 0, 0], np.float32), np.zeros(4, np.int64)
    name = type(algorithm).__name__
    try:
        found = algorithm.advantages(reward, zeros, rows, zeros, ["state"] * 4)
        fine = found.shape == (4,) and found.dtype == np.float32 and np.isfinite(found).all()
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise ValueError(f"{name}.advantages fails on rewards 1, 0, 0, 0: {type(error).__name__}: {error}") from error
    if not fine:
        raise ValueError(f"{name}.advantages must give a finite float32 a row; rewards 1, 0, 0, 0 give {found!r}")
    losses = {type(algorithm).surrogate, type(algorithm).loss}
    if losses == {PolicyGradient.surrogate, PolicyGradient.loss}:
        raise ValueError(
            f"{name} has no loss: derive it from layersweep.policies.algorithms.clipped.ClippedPolicyGradient, or give "
            "it a `surrogate`"
        )
    if not all(method.__module__.startswith(f"{__package__}.") for method in losses):
        _try_loss(algorithm)


def _try_loss(algorithm: PolicyGradient) -> None:
    import torch  # which a spec does without, but not a loss

    from .loss import LossTokens

    name = type(algorithm).__name__
    logp = torch.full((4,), -1.0, requires_grad=True)
    advantage, response = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([0, 0, 1, 1])
    try:
        loss = algorithm.loss(LossTokens(logp, logp.detach() - 0.1, advantage, torch.full((4,), 0.25), response)).loss
        (gradient,) = torch.autograd.grad(loss, logp)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise ValueError(f"{name}.loss fails on two responses: {type(error).__name__}: {error}") from error
    if not (loss.isfinite() and gradient.isfinite().all()):
        raise ValueError(
            f"{name}.loss must be finite and have a finite gradient; two responses give {loss:g} and {gradient}"
        )
