"""What the gate promises: a fair, repeatable and readable judgement of paired scores."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from learner.gate import PairedScores, Trial, bootstrap, holm, judge, mcnemar, settle, shares
from storage.records import Decision

MARGIN, SIGNIFICANCE = 2.0, 0.05


def task(name: str, old: list[float], new: list[float], *, earlier: bool = False) -> PairedScores:
    """Return the scores of one task."""
    return PairedScores(
        dataset_id=abs(hash(name)), name=name, earlier=earlier, champion=tuple(old), candidate=tuple(new)
    )


LEARNED = task("new", [0.0] * 30, [1.0] * 30)


def decide(*tasks: PairedScores) -> Decision:
    """Judge with the usual margin."""
    return judge(tasks, margin_points=MARGIN, significance=SIGNIFICANCE).decision


def test_a_task_learned_without_loss_is_promoted() -> None:
    """A candidate that learned the new task and kept the old one is promoted."""
    assert decide(LEARNED, task("old", [1.0] * 30, [1.0] * 30, earlier=True)) is Decision.PROMOTE


def test_forgetting_is_rejected_and_the_task_named() -> None:
    """A clear loss on an earlier task rejects the candidate, and the reason names that task and both scores."""
    verdict = judge(
        [LEARNED, task("digits", [1.0] * 30, [0.0] * 30, earlier=True)],
        margin_points=MARGIN,
        significance=SIGNIFICANCE,
    )
    assert verdict.decision is Decision.REJECT
    assert "digits: 100.0 → 0.0 on 30 rows" in verdict.reasons[0]


def test_too_few_rows_hold_instead_of_guessing() -> None:
    """A loss beyond the margin that chance could explain is held for a person, not promoted."""
    assert decide(LEARNED, task("old", [1.0] * 5, [1.0] * 3 + [0.0] * 2, earlier=True)) is Decision.HOLD


def test_a_loss_within_the_margin_is_promoted() -> None:
    """A loss smaller than the margin does not stop a candidate."""
    old = task("old", [1.0] * 100, [1.0] * 99 + [0.0], earlier=True)
    assert decide(LEARNED, old) is Decision.PROMOTE


def test_learning_nothing_is_held() -> None:
    """A candidate no better on the new task than its champion is not promoted."""
    assert decide(task("new", [1.0, 0.0] * 20, [0.0, 1.0] * 20)) is Decision.HOLD


def test_a_new_task_made_worse_is_rejected() -> None:
    """Getting surely worse at the very task that was taught rejects the candidate."""
    assert decide(task("new", [1.0] * 30, [0.0] * 30)) is Decision.REJECT


def test_a_task_without_holdout_is_held() -> None:
    """Nothing is promoted when a task has no rows to judge it by."""
    assert decide(LEARNED, task("tiny", [], [])) is Decision.HOLD


def test_graded_scores_are_compared_too() -> None:
    """Long answers with scores between 0 and 1 are judged by resampling."""
    assert decide(task("captions", [0.2, 0.3, 0.25] * 10, [0.6, 0.7, 0.65] * 10)) is Decision.PROMOTE


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_agrees_with_the_binomial_test(gained: int, lost: int) -> None:
    """The exact McNemar p-values are those of scipy's binomial test."""
    worse, better = mcnemar(gained, lost)
    if gained + lost:
        assert worse == pytest.approx(stats.binomtest(lost, gained + lost, alternative="greater").pvalue)
        assert better == pytest.approx(stats.binomtest(gained, gained + lost, alternative="greater").pvalue)
    else:
        assert (worse, better) == (1.0, 1.0)


def test_holm_agrees_with_the_worked_example() -> None:
    """Holm's correction gives the values worked out by hand: 0.01·4, 0.02·3, then the running maximum."""
    assert holm([0.02, 0.01, 0.9, 0.025]) == pytest.approx([0.06, 0.04, 0.9, 0.06])


def test_bootstrap_is_repeatable_and_knows_the_direction() -> None:
    """The same differences give the same p-values, small on the side they point to."""
    worse, better = bootstrap([0.3, 0.2, 0.4, 0.1, 0.3, 0.2, 0.25, 0.15])
    assert (worse, better) == bootstrap([0.3, 0.2, 0.4, 0.1, 0.3, 0.2, 0.25, 0.15])
    assert better < 0.01
    assert worse > 0.9


def trial(name: str, share: float, kept: list[float]) -> Trial:
    """Judge a candidate that learned the new task and kept this much of the old one."""
    tasks = [LEARNED, task("digits", [1.0] * len(kept), kept, earlier=True)]
    return Trial(
        name=name, share=share, verdict=judge(tasks, margin_points=MARGIN, significance=SIGNIFICANCE)
    )


FORGOT, KEPT, UNSURE = [0.0] * 30, [1.0] * 30, [1.0] * 29 + [0.0]


def test_points_go_back_from_the_candidate_in_even_steps() -> None:
    """The farthest comes first, neither end is among them, and none at all turns it off."""
    assert shares(3) == [0.75, 0.5, 0.25]
    assert shares(1) == [0.5]
    assert shares(0) == []


def test_round_with_one_candidate_has_its_verdict() -> None:
    """Where nothing else was tried, nothing is added."""
    only = trial("assistant@7", 1.0, FORGOT)
    assert settle([only]) == only.verdict


def test_promoted_point_decides_and_tells_what_was_rejected() -> None:
    """The round's figures are the point's; the reasons name how far it goes and why the others were not taken."""
    trials = [
        trial("assistant@7", 1.0, FORGOT),
        trial("assistant@8", 0.75, UNSURE),
        trial("assistant@9", 0.5, KEPT),
    ]
    verdict = settle(trials)
    assert verdict.decision is Decision.PROMOTE
    assert verdict.tasks == trials[-1].verdict.tasks
    assert verdict.reasons[0] == "assistant@9 goes 50% of the way to assistant@7"
    assert verdict.reasons[-2].startswith("assistant@7, as trained: reject, digits: 100.0 → 0.0 on 30 rows")
    assert verdict.reasons[-1].startswith("assistant@8, 75% of the way there: hold, digits: 100.0 → 96.7")
    told = json.loads(json.dumps(verdict.to_json()))["tried"]
    assert [(one["name"], one["share"], one["verdict"]["decision"]) for one in told] == [
        ("assistant@7", 1.0, "reject"),
        ("assistant@8", 0.75, "hold"),
        ("assistant@9", 0.5, "promote"),
    ]


def test_round_without_a_point_that_passes_is_rejected_as_it_was_trained() -> None:
    """A point that is only held does not soften the rejection."""
    trials = [trial("assistant@7", 1.0, FORGOT), trial("assistant@8", 0.5, UNSURE)]
    verdict = settle(trials)
    assert verdict.decision is Decision.REJECT
    assert verdict.tasks == trials[0].verdict.tasks
    assert verdict.reasons[: len(trials[0].verdict.reasons)] == trials[0].verdict.reasons
    assert verdict.reasons[-1].startswith("assistant@8, 50% of the way there: hold")


scores = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=60
)


@given(st.lists(st.tuples(st.booleans(), scores), min_size=1, max_size=5))
def test_nothing_is_promoted_that_lost_more_than_the_margin(
    tasks: list[tuple[bool, list[tuple[float, float]]]],
) -> None:
    """Whatever the scores, a promoted candidate lost no task by more than the margin."""
    verdict = judge(
        [
            task(f"task {i}", [old for old, _ in pairs], [new for _, new in pairs], earlier=earlier)
            for i, (earlier, pairs) in enumerate(tasks)
        ],
        margin_points=MARGIN,
        significance=SIGNIFICANCE,
    )
    if verdict.decision is Decision.PROMOTE:
        assert all(result.change >= -MARGIN for result in verdict.tasks)
        assert any(not result.earlier and result.change > 0 for result in verdict.tasks)
    assert verdict.reasons


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_few_graded_rows_prove_nothing(rows: int) -> None:
    """However large the gain on a handful of long answers, the candidate is held, not promoted."""
    assert decide(task("captions", [0.1] * rows, [0.9 - 0.01 * n for n in range(rows)])) is Decision.HOLD
