"""Which policies there are, and the one that a round's settings ask for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

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
from storage.errors import PoliciesClash

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
OTHER_FACTORS = ("keeplora", "olora", "slao")
"""Begin a round with other factors A and B than the round before has ended with."""
BY_FACTOR = ("ewc", "llaca", "mas", "pegp", "tir")
"""Remember from round to round something of single entries, or directions, of the factors; `llaca` by its rule
`balance`, its other rules replace the weights as those above do."""
AS_FOUND = ("dgg", "lwf")
"""Hold to the model that the round has found."""


def policy_for(settings: LearnerSettings, first_task: bool) -> Composed:
    """Return the policy of a round, made of the parts that `settings.policy` joins by `+`.

    LLaCA has nothing to protect in a first round, so it trains plainly there unless the settings say otherwise. Raises
    PoliciesClash for parts that cannot be combined, in a first round, too, where they could.
    """
    names = settings.policy.split("+")
    whole = Composed({name: part(name, settings) for name in names})
    refuse_clashes(names)
    plain = first_task and settings.llaca_first_task == "plain"
    if plain and "llaca" in names and settings.llaca_rule != "balance":
        return Composed({**whole.parts, "llaca": Policy(settings)})
    return whole


def refuse_clashes(names: Sequence[str]) -> None:
    """Raise PoliciesClash for a pair of which one takes away what the other stands on."""
    for one, other in permutations(names, 2):
        if one == "joint":
            raise PoliciesClash(
                (one, other), "joint learns everything anew, so that nothing is left to protect"
            )
        if one in BY_FACTOR and other in OTHER_FACTORS:
            reason = (
                f"{one} remembers single entries of the adapter, and {other} begins each round with others"
            )
            raise PoliciesClash((one, other), reason)
        if one in AS_FOUND and other == "slao":
            reason = f"{one} holds to the model of before, and slao changes it before the first step"
            raise PoliciesClash((one, other), reason)


def part(name: str, settings: LearnerSettings) -> Policy:
    """Return the policy of this name; `llaca` by its rule."""
    if name == "llaca" and settings.llaca_rule == "balance":
        return Balance(settings)
    return CLASSES[name](settings)
