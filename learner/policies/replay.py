"""Experience replay: a few rows of every earlier task are trained again among the new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from learner.data import Example
from learner.policies.policy import Policy


class Replay(Policy):
    """Policy `replay`: `replay_rows` rows of each earlier dataset, fewer if they would outgrow the new ones."""

    def memory_rows(self, inherited: Mapping[str, Tensor]) -> int:
        """Return what the settings say."""
        return self.settings.replay_rows

    def rehearsal(self) -> Sequence[Example]:
        """Return as many rows of each earlier task as fit into the share that old rows may take."""
        earlier = self.task.earlier
        if not earlier:
            return ()
        most = int(self.settings.replay_share * len(self.task.examples)) // len(earlier)
        return [example for rows in earlier for example in rows[: max(1, most)]]
