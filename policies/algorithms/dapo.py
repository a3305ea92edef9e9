"""DAPO: decoupled clip and dynamic sampling policy optimisation."""

from typing import Literal

from pydantic import Field, PositiveInt

from .clipped import ClippedPolicyGradient
from .group_relative import GroupRelative
from .loss_settings import Aggregation


class DAPO(GroupRelative, ClippedPolicyGradient):
    """GRPO with four changes (Yu et al. 2025, arXiv 2503.14476), and without a KL term.

    Clip-higher (section 3.1): clip_high .28 beside clip_low .2. Dynamic sampling (3.2, eq. 11): prompts whose responses
    are all scored alike are replaced by further ones. Token-level loss (3.3, eq. 12): the mean over all tokens of the
    batch. Soft overlong punishment (3.4, eq. 13): `overlong_buffer`, off here, since its length is the task's: 4,096
    of 20,480 tokens in the paper.
    """

    type: Literal["dapo"] = "dapo"
    clip_high: float = Field(0.28, gt=0)
    """The ratio is clipped from above at 1 + clip_high."""
    aggregation: Aggregation = "token_mean"
    """Token losses averaged over all tokens of the optimizer batch."""
    max_num_gen_batches: PositiveInt = 10
    """Rounds of generation at most until every prompt of a batch has responses that are scored unlike."""
