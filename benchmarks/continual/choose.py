"""Which teacher a method has: the learner for its policies, or one of the benchmark's own."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from benchmarks.continual.adapters import AdapterTeacher
from benchmarks.continual.experts import ExpertSettings, ExpertTeacher
from benchmarks.continual.prompts import PrefixTeacher, PromptSettings, PromptTeacher
from benchmarks.continual.protocol import Method
from benchmarks.continual.teacher import Teacher
from learner.settings import LearnerSettings
from storage.settings import load

Own = TypeVar("Own", ExpertSettings, PromptSettings)

PROJECTOR_RATE = 1e-3
"""Learning rate of `eproj` unless set: that of the public fork of the authors' code."""
TOKEN_RATE = 1e-2
"""Learning rate of `prompt` and `prefix` unless set; ours. An adapter's is far too low for a few vectors."""


def teacher_of(method: Method, shared: dict[str, Any], seed: int) -> Teacher:
    """Return the teacher of a method; `shared` are the learner's settings that all methods have.

    Raises BadSetting or ValueError if a setting does not exist or cannot be used, PoliciesClash if the parts of a
    policy cannot be combined.
    """
    given = shared | method.overrides | {"seed": seed}
    name = given["policy"]
    if name not in ("eproj", "prompt", "prefix"):
        return AdapterTeacher(learner_settings(given), method.groups)
    if method.groups is not None:
        raise ValueError(f"{method.label}: `groups` is for methods with adapters")
    try:
        if name == "eproj":
            return ExpertTeacher(*divided(given, ExpertSettings, PROJECTOR_RATE))
        tokens = PromptTeacher if name == "prompt" else PrefixTeacher
        return tokens(*divided(given, PromptSettings, TOKEN_RATE))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{method.label}: {first['loc'][0]}: {first['msg']}") from error


def learner_settings(given: dict[str, Any]) -> LearnerSettings:
    """Return the learner's settings with these; no variable of the environment has a say in what is compared."""
    defaults = {name: field.get_default() for name, field in LearnerSettings.model_fields.items()}
    return load(LearnerSettings, defaults | given)


def divided(given: dict[str, Any], kind: type[Own], rate: float) -> tuple[LearnerSettings, Own]:
    """Tell the learner's settings, which hold for whatever is trained, from a method's own."""
    own = {name: value for name, value in given.items() if name in kind.model_fields}
    rest = {name: value for name, value in given.items() if name not in own}
    return learner_settings({"learning_rate": rate} | rest | {"policy": "sequential"}), kind(**own)
