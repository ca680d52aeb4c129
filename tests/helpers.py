"""Tiny models of every algorithm, and comparisons of what they contain."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_diffusion.core.algorithm import DiffusionAlgorithm
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.data.stored.dataset import OfflineDataset
from sb3_diffusion.policies.actor_critic import ActorCritic
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from tests.cases import case_of
from tests.environments import PointEnv

TINY_POLICY: dict[str, Any] = {"net_arch": [16], "state_arch": [8], "time_dim": 8, "diffusion_steps": 3}


def tiny_policy(algorithm: type[DiffusionAlgorithm]) -> dict[str, Any]:
    """Arguments of the policy of a model made by :func:`make`."""
    known = inspect.signature(first_policy(algorithm)).parameters
    return {**{name: value for name, value in TINY_POLICY.items() if name in known}, **case_of(algorithm).tiny_policy}


def first_policy(algorithm: type[DiffusionAlgorithm]) -> type[ActorCritic]:
    """The policy that an algorithm calls first, which chooses its features extractor by the observation space."""
    return next(iter(algorithm.policy_aliases.values()))  # type: ignore[return-value]


def make(
    algorithm: type[OffPolicyDiffusion], env: Any = None, policy: Any = None, *, with_env: Any = True, **kwargs: Any
) -> Any:
    """
    :param algorithm: The algorithm
    :param env: Environment, :class:`~tests.envs.PointEnv` by default
    :param with_env: Whether it has an environment; without, there has to be a ``dataset``
    :param policy: First argument of the algorithm, ``None`` for its first name of a policy
    :param kwargs: Arguments of the algorithm that replace the tiny ones; ``policy_kwargs`` are merged
    :return: A model whose whole training takes a fraction of a second
    """
    defaults = {"buffer_size": 500, "batch_size": 8, "learning_starts": 10, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    policy_kwargs = {**tiny_policy(algorithm), **kwargs.pop("policy_kwargs", {})}
    tiny = case_of(algorithm).tiny
    policy = first_policy(algorithm).general_name if policy is None else policy
    env = PointEnv() if env is None and with_env else env
    return algorithm(policy, env, policy_kwargs=policy_kwargs, **{**defaults, **tiny, **kwargs})


def point_data(n: int = 60, seed: int = 0, **kwargs: Any) -> OfflineDataset:
    """Episodes of 10 steps that are like PointEnv's; every second one is cut, the others end."""
    generator = np.random.default_rng(seed)
    space: Any = PointEnv().observation_space
    box: Any = PointEnv().action_space
    ends = np.arange(n) % 10 == 9
    terminated = ends & (np.arange(n) // 10 % 2 == 0)
    before, after = generator.normal(size=(2, n, *space.shape)).astype(np.float32)
    actions = generator.uniform(box.low, box.high, size=(n, *box.shape)).astype(np.float32)
    return OfflineDataset.from_arrays(
        before,
        actions,
        generator.normal(size=n),
        terminated,
        ends & ~terminated,
        after,
        **{"observation_space": space, "action_space": box, **kwargs},
    )


def collect(model: Any, n_steps: int = 20) -> Any:
    """
    Fill the replay buffer with random actions, without any update.

    :param model: The model
    :param n_steps: Environment steps
    :return: The same model
    """
    learning_starts, model.learning_starts = model.learning_starts, n_steps
    model.learn(n_steps)
    model.learning_starts = learning_starts
    return model


def make_filled(algorithm: type[OffPolicyDiffusion], env: Any = None, **kwargs: Any) -> Any:
    """A tiny model with 20 random transitions in its replay buffer, see :func:`make` and :func:`collect`."""
    return collect(make(algorithm, env, **kwargs))


def with_logger(model: Any) -> Any:
    """A loaded model has no logger before ``learn()``; this one can ``train()`` right away."""
    model.set_logger(configure(None, []))
    return model


def sample_batch(model: Any, batch_size: int = 8) -> Batch:
    """A batch of the replay buffer as ``train()`` sees it."""
    return Batch.from_replay(model.replay_buffer.sample(batch_size, env=model._vec_normalize_env), model.gamma)


def observations(space: spaces.Space, n: int = 6, seed: int = 0) -> Any:
    """``n`` random observations of a space, as one batch."""
    space.seed(seed)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def rows(batch: Any, index: Any) -> Any:
    """Rows of a batch of observations, Dict or not."""
    return {key: value[index] for key, value in batch.items()} if isinstance(batch, dict) else batch[index]


def act(model: Any, obs: Any, deterministic: bool = True) -> np.ndarray:
    """Actions of a model or a policy."""
    return model.predict(obs, deterministic=deterministic)[0]


def to_tensors(model: Any, obs: Any) -> Any:
    """Observations as the networks get them."""
    return obs_as_tensor(obs, model.device)


def parameters(module: nn.Module) -> dict[str, th.Tensor]:
    """A copy of what a module has learned."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def flat_parameters(module: nn.Module) -> th.Tensor:
    """All parameters of a module in one vector."""
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def assert_identical(left: Any, right: Any, path: str = "") -> None:
    """Nested containers hold the same numbers, bit for bit."""
    if isinstance(left, th.Tensor):
        assert left.dtype == right.dtype and th.equal(left, right), path
    elif isinstance(left, Mapping):
        assert set(left) == set(right), path
        for key in left:
            assert_identical(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_identical(a, b, f"{path}/{index}")
    else:
        assert left == right, path


def soften(model: Any) -> Any:
    """
    Shrink a noise network: fresh ones push many actions to the ends of the box, where comparisons say little. A network of
    another kind, shrunk like that, would leave all actions where they started.
    """
    if not hasattr(model.actor, "process") or model.actor.process.prediction != "noise":
        return model
    with th.no_grad():
        for parameter in model.actor.denoiser.trunk.parameters():
            parameter.mul_(0.1)
    return model


def all_finite(model: Any) -> bool:
    """Whether nothing that the model has learned is NaN or infinite."""
    return all(bool(th.isfinite(value).all()) for value in model.policy.state_dict().values())


def tensors_in(value: Any, path: str) -> Iterator[str]:
    """Paths of the tensors and modules inside containers and inside this library's own objects."""
    if isinstance(value, th.Tensor | nn.Module | th.optim.Optimizer):
        yield path
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{path}.{key}")
    elif isinstance(value, list | tuple | set | deque):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{path}.{index}")
    elif hasattr(value, "__dict__") and type(value).__module__.startswith("sb3_diffusion"):
        yield from tensors_in(vars(value), path)


class BatchNormExtractor(BaseFeaturesExtractor):
    """
    Features extractor with running statistics and parameters of its own.

    :param observation_space: Box space
    :param features_dim: Number of features
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 5):
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(int(np.prod(observation_space.shape))), nn.LazyLinear(features_dim)
        )
        self.net(th.zeros(2, *observation_space.shape))

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return self.net(obs)


class CautiousPolicy(DiffusionPolicy):
    """
    A user's policy, written as users of Stable-Baselines3 write theirs.

    :param caution: Factor of the actions
    """

    def __init__(self, *args: Any, caution: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.caution = caution

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.caution * super()._predict(observation, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "caution": self.caution}


def watched(function: Callable[..., Any], note: Callable[..., object]) -> Callable[..., Any]:
    """
    :param function: Any function
    :param note: Called with the same arguments before each of its calls
    :return: A function in its place
    """

    def both(*args: Any) -> Any:
        note(*args)
        return function(*args)

    return both


def part(model: Any, name: str) -> Part:
    """One of the parts that a model trains."""
    return next(part for part in model.parts() if part.name == name)
