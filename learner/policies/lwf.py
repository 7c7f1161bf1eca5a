"""Learning without forgetting (arXiv 1606.09282): on the new rows the model keeps saying what it said before."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from learner.data import IGNORED
from learner.loss import Batch
from learner.policies.policy import Policy, Task
from learner.policies.tensors import copies


class Lwf(Policy):
    """Policy `lwf`: adds λ KL(before ‖ now) on the answers' tokens, λ being `lwf_strength`; a first round is free."""

    def start(self, task: Task) -> None:
        """Keep the weights with which the round starts: they are the teacher."""
        super().start(task)
        self.teacher = [] if task.first else copies(task.weights)

    def extra_loss(self, batch: Batch, logits_BKV: Tensor) -> Tensor | float:
        """Return the divergence, for which the teacher reads the batch as well."""
        if not self.teacher:
            return 0.0
        model = self.task.model
        training = model.training
        model.eval()  # a teacher drops nothing out
        with torch.no_grad():
            before_BKV = self.task.logits(batch, self.teacher)
        model.train(training)
        answered_BK = batch.targets != IGNORED
        return self.settings.lwf_strength * divergence(before_BKV[answered_BK], logits_BKV[answered_BK])


def divergence(before_NV: Tensor, now_NV: Tensor) -> Tensor:
    """Return the mean over tokens of KL(softmax(before) ‖ softmax(now)), in nats."""
    before, now = log_softmax(before_NV.float(), dim=-1), log_softmax(now_NV.float(), dim=-1)
    return kl_div(now, before, reduction="batchmean", log_target=True)
