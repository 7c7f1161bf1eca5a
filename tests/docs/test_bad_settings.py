"""What every setting promises: a value that cannot be used is refused by name, with what is allowed."""

from __future__ import annotations

import pytest

from learner.settings import LearnerSettings
from storage.errors import BadSetting
from storage.settings import PREFIX, Settings, load
from tests.docs.settings_page import CLASSES

ANY_TEXT = {"model", "smollm2", "vllm_host", "host", "data_dir"}
"""Settings that take any text; whether it names something that exists shows where it is used."""
BAD = {"vllm_arguments": "--dtype 'float32"}
FIELDS = [(cls, name) for cls in CLASSES for name in cls.model_fields if name not in ANY_TEXT]


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_nonsense_is_refused_by_name(cls: type[Settings], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting that has a form refuses a value without it, and the sentence names setting and value."""
    variable, value = f"{PREFIX}{name.upper()}", BAD.get(name, "nonsense")
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadSetting) as refused:
        load(cls)
    assert str(refused.value).startswith(f"{variable}: found {value!r}; allowed: ")


def test_a_rank_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is text, and still a rank."""
    monkeypatch.setenv("LLACA_RANK", "8")
    assert load(LearnerSettings).rank == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLACA_CRON", "61 * * * *"),
        ("LLACA_CRON", "every night"),
        ("LLACA_HEARTBEAT_SECONDS", "20"),
        ("LLACA_MAX_CPU_LORAS", "3"),
        ("LLACA_REPLICAS", '["localhost:8100"]'),
        ("LLACA_REPLICAS", "[]"),
        ("LLACA_PORT", "65536"),
        ("LLACA_PUBLIC_URL", "llaca.example.org"),
        ("LLACA_RANK", "12"),
        ("LLACA_LEARNING_RATE", "0"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of the right form that cannot work is refused as well."""
    monkeypatch.setenv(name, value)
    (cls,) = [cls for cls in CLASSES if name.removeprefix(PREFIX).lower() in cls.model_fields]
    with pytest.raises(BadSetting, match=name):
        load(cls)
