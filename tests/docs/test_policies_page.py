"""What docs/policies.md promises: a table of every policy as it is, and an example that works as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from learner import settings as learner_settings
from learner.policies.choose import CLASSES, policy_for
from learner.policies.policy import Policy
from learner.settings import POLICIES, LearnerSettings
from learner.train import TrainingJob
from storage.errors import PoliciesClash, TrainingStopped
from tests.learner import tiny
from tests.learner.test_training import assert_same_bits, job_of, trained

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def rows_of(heading: str) -> dict[str, list[str]]:
    """Return the cells of the table with this heading, by what stands in backticks in the first one."""
    table = PAGE[PAGE.index(f"\n{heading}") :].split("\n\n")[0].splitlines()[3:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {name: row for row in cells for name in re.findall(r"`(\w+)`", row[0])}


TABLE, HOOKS = rows_of("| policy |"), rows_of("| | when |")


def test_table_names_every_policy_once_in_order() -> None:
    """The table has the policies that the settings allow, and no other."""
    assert list(TABLE) == list(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_row_of_a_policy_agrees_with_its_class(name: str) -> None:
    """What a row says about earlier rows and replaced weights is what the class does with the default settings."""
    policy = CLASSES[name](LearnerSettings())
    first, *_, earlier, _, _ = TABLE[name]
    wanted = policy.memory_rows({})
    assert earlier == {0: "-", sys.maxsize: "all"}.get(wanted, str(wanted))
    assert ("◆" in first) == policy.replaces_weights


def partners(of: str) -> set[str]:
    """Return what a policy can be combined with, as its row says."""
    said = TABLE[of][-1]
    replacing = {name for name, row in TABLE.items() if "◆" in row[0]}
    named = replacing if "◆" in said else set(re.findall(r"`(\w+)`", said))
    return (set(POLICIES) - named if said.startswith("all but") else named) - {of}


def accepted(one: str, other: str, **settings: Any) -> bool:
    """Whether a round takes this combination."""
    try:
        policy_for(LearnerSettings(policy=f"{one}+{other}", **settings), first_task=False)
    except PoliciesClash:
        return False
    return True


@pytest.mark.parametrize("name", POLICIES)
def test_row_of_a_policy_says_what_it_combines_with(name: str) -> None:
    """Everything that the last column names is accepted in either order, and nothing else is."""
    for other in set(POLICIES) - {name}:
        assert accepted(name, other) == accepted(other, name) == (other in partners(name)), other


def test_balance_combines_as_ewc_does() -> None:
    """What the text below the table says of `llaca` with the rule `balance`."""
    for other in set(POLICIES) - {"llaca", "ewc"}:
        assert accepted("llaca", other, llaca_rule="balance") == accepted("ewc", other), other


def test_every_hook_is_explained() -> None:
    """The table of hooks has everything that a policy can define."""
    assert set(HOOKS) == {name for name in vars(Policy) if not name.startswith("_")}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> type[Policy]:
    """The page's policy, registered as the page says."""
    (text,) = EXAMPLE
    module = ModuleType("l2sp")
    exec(compile(text, "docs/policies.md", "exec"), vars(module))
    found: type[Policy] = vars(module)["L2SP"]
    monkeypatch.setitem(CLASSES, "l2sp", found)
    monkeypatch.setattr(learner_settings, "POLICIES", (*POLICIES, "l2sp"))
    return found


def test_example_is_short_enough_to_be_copied() -> None:
    """A whole policy takes under 40 lines."""
    (text,) = EXAMPLE
    assert len(text.splitlines()) < 40


def test_example_does_what_the_page_says(
    example: type[Policy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the real loop it holds the weights from the second step on, goes on exactly, and spares a first round."""
    base, pictures = tiny.build("llava", tmp_path / "base"), tiny.Pictures()
    rows = tiny.counting_rows(pictures, 8)

    def job(name: str, policy: str = "l2sp", **changes: Any) -> TrainingJob:
        settings = LearnerSettings(policy=policy, rank=8, learning_rate=1e-2, warmup_share=0, epochs=1)
        return job_of(base, tmp_path / name, settings, rows=rows, image=pictures.read, **changes)

    plain, unheld = trained(job("plain", "sequential"))
    monkeypatch.setattr(example, "strength", 1e4)
    whole, held = trained(job("whole"))
    first_round, free = trained(job("first", first_task=True))
    with pytest.raises(TrainingStopped):
        trained(job("cut"), stop_after=1)
    resumed, _ = trained(job("cut"))

    assert [values["step"] for values in held.values] == [1, 2]
    assert held.values[0]["grad_norm"] == unheld.values[0]["grad_norm"]
    assert held.values[1]["grad_norm"] > 10 * unheld.values[1]["grad_norm"]
    assert held.values[1]["l2sp_distance"] < 0.8 * free.values[1]["l2sp_distance"]
    assert_same_bits(first_round, plain)
    assert_same_bits(resumed, whole)


@pytest.mark.usefixtures("example")
def test_example_can_be_combined() -> None:
    """Its name is allowed beside others once it is registered."""
    assert set(policy_for(LearnerSettings(policy="l2sp+replay"), first_task=False).parts) == {
        "l2sp",
        "replay",
    }
