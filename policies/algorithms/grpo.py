"""GRPO: group-relative policy optimisation."""

from typing import Literal

from .clipped import ClippedPolicyGradient
from .group_relative import GroupRelative
from .loss_settings import Aggregation


class GRPO(GroupRelative, ClippedPolicyGradient):
    """Group-relative advantages, clipped surrogate, mean over each response (Shao et al. 2024, arXiv 2402.03300)."""

    type: Literal["grpo"] = "grpo"
    aggregation: Aggregation = "sequence_mean"
    """Token losses averaged over each response, then over responses."""
