"""Tiny on-policy models."""

from typing import Any

from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.envs.tensor.tasks.pendulum import Pendulum
from tests.cases import case_of
from tests.helpers import first_policy, tiny_policy

N_ENVS, N_STEPS = 4, 8
ROLLOUT = N_ENVS * N_STEPS


def tensor_env(n_envs: int = N_ENVS) -> Pendulum:
    return Pendulum(n_envs, "cpu", max_episode_length=5)


def make(algorithm: type[OnPolicyDiffusion], env: Any = None, policy: Any = None, **kwargs: Any) -> Any:
    """A model whose whole training takes a fraction of a second."""
    defaults = {"n_steps": N_STEPS, "n_epochs": 2, "n_minibatches": 2, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    policy_kwargs = {**tiny_policy(algorithm), **kwargs.pop("policy_kwargs", {})}
    policy = first_policy(algorithm).general_name if policy is None else policy
    env = tensor_env() if env is None else env
    return algorithm(policy, env, policy_kwargs=policy_kwargs, **{**defaults, **case_of(algorithm).tiny, **kwargs})
