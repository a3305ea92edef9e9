"""What a trainer trains on, and what it reports, where rewards or responses are not the run's own."""

from dataclasses import replace

import pytest

from layersweep.policies.selection import Selection
from layersweep.workers.actors.trainer import Trainer
from layersweep.workers.training.drawn_reward import DrawnReward
from tests.helpers.updates import experience


class Loop:
    """Keeps what it is to train on."""

    def update(self, given, step):
        self.given = given
        return {"reward_mean": float(given.reward.mean()), "reward_std": 0.0, "logprob_mismatch": 1e-6}


@pytest.fixture
def trainer(monkeypatch):
    trainer = Trainer(Selection.layer(1), seed=3)
    trainer.loop, trainer.reward = Loop(), None
    monkeypatch.setattr(trainer, "weights", dict)
    return trainer


def test_a_drawn_reward_is_trained_on_and_the_task_s_is_reported(trainer):
    """Seed and step of the run decide the draw."""
    given = replace(experience(), version=4)
    trainer.reward = DrawnReward(0.5)
    metrics, _ = trainer.update(given, 4)
    assert trainer.loop.given.reward.tolist() == DrawnReward(0.5).instead(given, 3, 4).reward.tolist()
    assert trainer.loop.given.reward.tolist() != given.reward.tolist()
    assert metrics["reward_mean"] == pytest.approx(given.reward.mean())
    assert metrics["reward_std"] == pytest.approx(given.reward.std())


def test_staleness_is_the_step_less_the_version_of_the_weights_that_generated_the_batch(trainer):
    given = replace(experience(), version=2)
    assert trainer.update(given, 2)[0]["staleness"] == 0 and trainer.loop.given is given
    assert trainer.update(given, 3)[0]["staleness"] == 1
    assert trainer.update(replace(given, version=0), 7)[0]["staleness"] == 7  # the base's, of a supervised control
