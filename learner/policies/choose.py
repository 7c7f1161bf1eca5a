"""Which policies there are, and the one that a round's settings ask for."""

from __future__ import annotations

from learner.policies.agem import AGem
from learner.policies.balance import Balance
from learner.policies.cofima import Cofima
from learner.policies.composed import Composed
from learner.policies.dgg import Dgg
from learner.policies.ema import FixedAverage
from learner.policies.ewc import Ewc
from learner.policies.interpolate import Interpolate
from learner.policies.joint import Joint
from learner.policies.keeplora import KeepLora
from learner.policies.llaca import Llaca
from learner.policies.lwf import Lwf
from learner.policies.mas import Mas
from learner.policies.olora import OLora
from learner.policies.pegp import Pegp
from learner.policies.policy import Policy
from learner.policies.replay import Replay
from learner.policies.slao import Slao
from learner.policies.tir import Tir
from learner.settings import LearnerSettings

CLASSES: dict[str, type[Policy]] = {
    "agem": AGem,
    "cofima": Cofima,
    "dgg": Dgg,
    "ema": FixedAverage,
    "ewc": Ewc,
    "interpolate": Interpolate,
    "joint": Joint,
    "keeplora": KeepLora,
    "llaca": Llaca,
    "lwf": Lwf,
    "mas": Mas,
    "olora": OLora,
    "pegp": Pegp,
    "replay": Replay,
    "sequential": Policy,
    "slao": Slao,
    "tir": Tir,
}
"""Each name that `learner.settings.POLICIES` allows."""


def policy_for(settings: LearnerSettings, first_task: bool) -> Composed:
    """Return the policy of a round, made of the parts that `settings.policy` joins by `+`.

    LLaCA has nothing to protect in a first round, so it trains plainly there unless the settings say otherwise. Raises
    PoliciesClash for parts that cannot be combined.
    """
    return Composed(
        {
            name: llaca_for(settings, first_task) if name == "llaca" else CLASSES[name](settings)
            for name in settings.policy.split("+")
        }
    )


def llaca_for(settings: LearnerSettings, first_task: bool) -> Policy:
    """Return the policy `llaca` by its rule."""
    if settings.llaca_rule == "balance":
        return Balance(settings)
    if first_task and settings.llaca_first_task == "plain":
        return Policy(settings)
    return Llaca(settings)
