"""Algorithms: how rewards become advantages, and advantages a loss; one module each.

A new algorithm is one module, with a subclass of `base.PolicyGradient` whose `type` is its name in the spec, and one
line here: each class imported below is a choice of the spec's `algorithm` section. `clipped` and `group_relative` are
the loss and the advantages that most of them share.
"""

from .cispo import CISPO as CISPO
from .custom import CustomAlgorithm as CustomAlgorithm
from .dapo import DAPO as DAPO
from .dr_grpo import DrGRPO as DrGRPO
from .gigpo import GiGPO as GiGPO
from .grpo import GRPO as GRPO
from .gspo import GSPO as GSPO
from .reinforce_plus_plus import ReinforcePlusPlus as ReinforcePlusPlus
from .rloo import RLOO as RLOO
from .sapo import SAPO as SAPO
