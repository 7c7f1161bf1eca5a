"""Every answer that judged a candidate, and the accuracy matrix that grows from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from storage.database import Database
from storage.errors import LeaseLost
from storage.records import ACTIVE, AccuracyMatrix, Answer


class Evaluations:
    """Holdout answers per round and generation; nothing is ever overwritten by another round."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def answers(self, round_id: int, generation: int, dataset_id: int | None = None) -> list[Answer]:
        """Return what a generation answered in a round, in the order of the rows."""
        found = self._database.rows(
            "SELECT row_id, dataset_id, generation, answer, score FROM answers WHERE round_id = :round_id"
            " AND generation = :generation AND (:dataset_id IS NULL OR dataset_id = :dataset_id) ORDER BY row_id",
            {"round_id": round_id, "generation": generation, "dataset_id": dataset_id},
        )
        return [Answer(**row) for row in found]

    def add_answers(self, round_id: int, lease: str, answers: Iterable[Answer]) -> None:
        """Keep answers; one that is there already stays as it was, so that evaluating can go on. Raises LeaseLost."""
        with self._database.writing():
            holder = self._database.row(
                "SELECT state FROM rounds WHERE id = ? AND lease = ?", [round_id, lease]
            )
            if holder is None or holder["state"] not in ACTIVE:
                raise LeaseLost(round_id)
            for answer in answers:
                self._database.run(
                    "INSERT INTO answers (round_id, generation, dataset_id, row_id, answer, score)"
                    " VALUES (:round_id, :generation, :dataset_id, :row_id, :answer, :score) ON CONFLICT DO NOTHING",
                    {
                        "round_id": round_id,
                        "generation": answer.generation,
                        "dataset_id": answer.dataset_id,
                        "row_id": answer.row_id,
                        "answer": answer.answer,
                        "score": answer.score,
                    },
                )

    def matrix(self) -> AccuracyMatrix:
        """Return each generation's mean holdout score on each dataset, from the newest round that asked it."""
        found = self._database.rows(
            "SELECT generation, dataset_id, avg(score) AS score FROM answers WHERE round_id = (SELECT max(round_id)"
            " FROM answers AS newer WHERE newer.generation = answers.generation"
            " AND newer.dataset_id = answers.dataset_id) GROUP BY generation, dataset_id"
        )
        scores = {(row["generation"], row["dataset_id"]): row["score"] for row in found}
        generations = tuple(sorted({generation for generation, _ in scores}))
        datasets = tuple(sorted({dataset for _, dataset in scores}))
        values = tuple(tuple(scores.get((g, d)) for d in datasets) for g in generations)
        return AccuracyMatrix(generations=generations, datasets=datasets, values=values)

    def flipped(self, round_id: int, champion: int, candidate: int) -> list[dict[str, Any]]:
        """Return the rows on which the scores differ: `row_id`, `dataset_id`, answers `old` and `new`, and scores."""
        return self._database.rows(
            "SELECT a.row_id, a.dataset_id, a.answer AS old, b.answer AS new, a.score AS old_score,"
            " b.score AS new_score FROM answers a JOIN answers b ON b.round_id = a.round_id AND b.row_id = a.row_id"
            " WHERE a.round_id = ? AND a.generation = ? AND b.generation = ? AND a.score <> b.score"
            " ORDER BY b.score - a.score, a.row_id",
            [round_id, champion, candidate],
        )
