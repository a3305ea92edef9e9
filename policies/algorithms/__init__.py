"""Algorithms: how rewards become advantages, and advantages a loss; one module each.

A new algorithm is one module, with a subclass of `base.PolicyGradient` whose `type` is its name in the spec, and one
line here: each class imported below is a choice of the spec's `algorithm` section.
"""

from .custom import CustomAlgorithm as CustomAlgorithm
from .dr_grpo import DrGRPO as DrGRPO
from .gigpo import GiGPO as GiGPO
from .grpo import GRPO as GRPO
from .rloo import RLOO as RLOO
