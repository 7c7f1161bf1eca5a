"""Experience replay: a few rows of every earlier task are trained again among the new ones."""

from __future__ import annotations

from collections.abc import Sequence

from learner.data import Example
from learner.policies.policy import Policy
from learner.settings import LearnerSettings


class Replay(Policy):
    """Policy `replay`: `replay_rows` rows of each earlier dataset, fewer if they would outgrow the new ones."""

    def __init__(self, settings: LearnerSettings) -> None:
        super().__init__(settings)
        self.memory_rows = settings.replay_rows

    def rehearsal(self) -> Sequence[Example]:
        """Return as many rows of each earlier task as fit into the share that old rows may take."""
        earlier = self.task.earlier
        if not earlier:
            return ()
        most = int(self.settings.replay_share * len(self.task.examples)) // len(earlier)
        return [example for rows in earlier for example in rows[: max(1, most)]]
