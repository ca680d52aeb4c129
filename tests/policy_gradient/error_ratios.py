"""What the tests of the two methods share that compare a flow's errors."""

from collections.abc import Iterator
from typing import Any

import torch as th

from sb3_diffusion.core.ratios.flow_matching import FlowMatchingRatio
from sb3_diffusion.data.rollout import RolloutBatch
from tests.bandits import BanditEnv

SHARED_WRONG_ARGUMENTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"n_draws": 0}, ["n_draws=0", "at least 1"]),
    ({"error": "score"}, ["error='score'", "velocity, noise"]),
    ({"error_reduction": "max"}, ["error_reduction='max'", "mean, sum, sqrt"]),
    ({"output_std": -0.1}, ["output_std=-0.1", "at least 0"]),
    ({"policy_kwargs": {"process": "meanflow"}}, ["process='meanflow'", "'flow'", "requires"]),
    ({"policy_kwargs": {"sampler_kwargs": {"output_std": 0.5}}}, ["sampler_kwargs"]),
    ({"policy_kwargs": {"exploration_noise": 0.5}}, ["exploration_noise=0.5", "requires"]),
]


def first_batches(model: Any) -> Iterator[RolloutBatch]:
    """Rollouts of a model of 8 environments and 6 steps, before the updates from them; observations drift in between."""
    for _ in range(3):
        model.learn(48, reset_num_timesteps=False)
        model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer)
        model.policy.set_training_mode(True)
        yield model.rollout_buffer.rows(slice(None))


def learn_from_bad_actions(algorithm: type[FlowMatchingRatio], n_rollouts: int = 60, **kwargs: Any) -> list[float]:
    """
    A bandit of two dimensions, half of the actions of which, whatever they are, have the advantage -1, and the others none.

    :param algorithm: The method
    :param n_rollouts: Rollouts of 64 actions, each with 4 updates
    :param kwargs: Arguments of the method
    :return: Mean error after every rollout
    """
    model: Any = algorithm(
        "DiffusionPolicy",
        BanditEnv(action_dim=2),
        seed=0,
        learning_rate=3e-3,
        n_draws=4,
        normalize_observations=False,
        policy_kwargs={"net_arch": [32, 32], "diffusion_steps": 4, "time_dim": 8},
        device="cpu",
        **kwargs,
    )
    model.clip.fill_(0.05)
    observations, none = th.zeros(64, *model.observation_space.shape), th.zeros(64)
    errors, generator = [], th.Generator().manual_seed(0)
    for _ in range(n_rollouts):
        with th.no_grad():
            actions, _ = model.act(observations)
            advantages = -th.randint(2, (64,), generator=generator).float()
            batch = RolloutBatch(observations, actions, none, advantages, none, none.bool())
            batch = batch._replace(fields=model.remember(batch))
        errors.append(float(batch.fields["error"].mean()))
        actor = model.parts()[0]
        for _ in range(4):
            model.step(actor, model.actor_loss(batch)[0])
    return errors
