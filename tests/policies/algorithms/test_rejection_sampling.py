"""Cross-entropy on right responses, against torch's own and by hand."""

import numpy as np
import pytest
import torch

from layersweep.policies.algorithms.loss import LossTokens, token_weights
from layersweep.policies.algorithms.rejection_sampling import RejectionSampling

ROWS = np.arange(4)


def test_advantages_leave_right_responses_alone():
    """[1, 0, 0, 1]: half are right and count twice. .4 is wrong, .5 is right; none right is no signal."""
    algorithm = RejectionSampling()

    def advantages(reward, trajectory=ROWS):
        return algorithm.advantages(np.array(reward, np.float32), ROWS // 2, trajectory, ROWS, []).tolist()

    assert advantages([1, 0, 0, 1]) == [2, 0, 0, 2]
    assert advantages([0.4, 0.5, 0, 0]) == [0, 4, 0, 0]
    assert advantages([0, 0, 0, 0]) == [0, 0, 0, 0]
    # Two episodes of two turns: the second one's return is 1, so both of its turns are right.
    assert advantages([0, 0, 0, 1], np.array([0, 0, 1, 1])) == [0, 0, 2, 2]


def test_the_loss_is_torch_s_cross_entropy_of_the_right_responses():
    """Responses of 1, 3, 2 tokens, of which the first two are right: the mean of their own mean cross-entropies, with
    its gradient, whatever the old log-probabilities and the clip of other losses say."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 11, generator=generator, requires_grad=True)
    labels, response = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([0, 1, 1, 1, 2, 2])
    algorithm = RejectionSampling()
    advantage = algorithm.advantages(np.array([1, 1, 0], np.float32), np.zeros(3, int), np.arange(3), np.zeros(3), [])
    weights = token_weights(torch.tensor([1, 3, 2]), algorithm.aggregation, 8)
    logp = torch.log_softmax(logits, -1)[range(6), labels]
    given = LossTokens(
        logp, logp.detach() - 3.0, torch.from_numpy(advantage)[response], weights[response], response
    )  # fmt: skip
    terms = algorithm.loss(given)
    (found,) = torch.autograd.grad(terms.loss, logits)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = (each[:1].mean() + each[1:4].mean()) / 2
    (gradient,) = torch.autograd.grad(expected, logits)
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(found, gradient)
    assert terms.clipped == 0
