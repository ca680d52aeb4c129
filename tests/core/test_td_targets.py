"""Temporal-difference targets of the common critic loss."""

import pytest
import torch as th
from torch.nn import functional as F

from sb3_diffusion import QSM, SDAC
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.batch import Batch
from tests.bandits import (
    AnalyticCritic,
    bandit_model,
    uniform_batch,
)


@pytest.mark.parametrize("algorithm", [SDAC, QSM])
def test_terminal_targets_are_the_reward(algorithm: type[OffPolicyDiffusion]) -> None:
    """With zero discounts the loss is the mean squared distance to the reward."""
    model = bandit_model(algorithm)
    batch: Batch = uniform_batch(model, 16)._replace(rewards=th.randn(16))
    loss, _ = model.critic_loss(batch)
    values = model.critic.q(batch.actions, model.critic.encode(batch.observations))
    th.testing.assert_close(loss, F.mse_loss(values, batch.rewards.expand_as(values)))


def test_target_takes_the_smaller_critic() -> None:
    model = bandit_model(SDAC)
    batch = uniform_batch(model, 4)._replace(discounts=th.full((4,), 0.5), rewards=th.ones(4))

    class Two(AnalyticCritic):
        def q(self, actions: th.Tensor, context: th.Tensor) -> th.Tensor:
            return th.tensor([[3.0], [-2.0]]).expand(2, len(actions))

    model.critic_target = Two(lambda actions: actions[..., 0])
    loss, _ = model.critic_loss(batch)
    values = model.critic.q(batch.actions, model.critic.encode(batch.observations))
    th.testing.assert_close(loss, values.sub(1.0 + 0.5 * -2.0).square().mean())
