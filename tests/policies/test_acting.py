"""The short way from an observation to an action gives what Stable-Baselines3's long way gives."""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_diffusion import DACER, QSM, DiffusionPolicy
from tests.environments import OBSERVATIONS, PointEnv, vector_env
from tests.helpers import BatchNormExtractor, CautiousPolicy, make, observations, rows


class LongWay(DiffusionPolicy):
    """The same policy with Stable-Baselines3's own methods."""

    device = BaseModel.device
    predict = BasePolicy.predict  # type: ignore[assignment]
    obs_to_tensor = BaseModel.obs_to_tensor  # type: ignore[assignment]


def both(observation: str = "box", **kwargs: Any) -> tuple[DiffusionPolicy, DiffusionPolicy]:
    """Our policy and the one that goes the long way, with the same weights."""
    env = PointEnv(observation, spaces.Box(np.array([-3.0, 0.0], np.float32), np.array([1.0, 5.0], np.float32)))
    model = make(QSM, env, policy_kwargs=kwargs)
    reference = LongWay(**model.policy._get_constructor_parameters())
    reference.load_state_dict(model.policy.state_dict())
    return model.policy, reference


def outcome(policy: BasePolicy, obs: Any, **kwargs: Any) -> Any:
    """Actions, or the error, of ``predict()`` under a fixed seed."""
    th.manual_seed(0)
    try:
        actions, state = policy.predict(obs, **kwargs)
    except Exception as error:
        return type(error), str(error)
    return actions.tolist(), actions.shape, actions.dtype, state


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_actions_are_those_of_stable_baselines3s_predict(observation: str, deterministic: bool) -> None:
    ours, reference = both(observation)
    batch = observations(ours.observation_space, 4)
    for obs in (batch, rows(batch, 2), rows(batch, slice(1)), rows(batch, slice(0))):
        expected = outcome(reference, obs, deterministic=deterministic, state=(np.ones(1),))
        assert outcome(ours, obs, deterministic=deterministic, state=(np.ones(1),)) == expected


@pytest.mark.parametrize(
    "obs",
    [
        np.zeros(4),
        np.zeros((2, 4)),
        np.zeros((2, 2, 3)),
        np.zeros(3, np.int64),
        np.zeros((3, 2)).T,
        np.zeros(3)[::-1],
        [0.0, 0.0, 0.0],
        (np.zeros(3), {}),
        {"point": np.zeros(3)},
        None,
    ],
    ids=str,
)
def test_unusual_observations_and_mistakes(obs: Any) -> None:
    ours, reference = both()
    assert outcome(ours, obs) == outcome(reference, obs)


def test_the_observation_is_not_changed_and_not_kept() -> None:
    ours, _ = both()
    obs = np.ones((2, 3), np.float32)
    tensor, is_batch = ours.obs_to_tensor(obs)
    assert is_batch and isinstance(tensor, th.Tensor)
    tensor.zero_()
    assert (obs == 1.0).all()


def test_device_of_the_policy() -> None:
    ours, reference = both()
    assert ours.device == reference.device == th.device("cpu")
    assert ours.to("meta").device == th.device("meta")


# -- training and evaluation mode -------------------------------------------------------------------------------------


class FrozenStatistics(BatchNormExtractor):
    """A user's features extractor whose running statistics are measured never again."""

    def train(self, mode: bool = True) -> "FrozenStatistics":
        super().train(mode)
        self.net[1].eval()
        return self


@pytest.mark.parametrize("extractor", [FlattenExtractor, BatchNormExtractor, FrozenStatistics])
def test_modes_are_those_of_stable_baselines3(extractor: type[Any]) -> None:
    ours, reference = both(features_extractor_class=extractor)
    reference.set_training_mode = lambda mode: BasePolicy.set_training_mode(reference, mode)  # type: ignore[method-assign]
    for mode in (False, True, True, False):
        ours.set_training_mode(mode)
        reference.set_training_mode(mode)
        expected = {name: module.training for name, module in reference.named_modules()}
        for name, module in ours.named_modules():
            target = name.startswith("critic_target")  # always in evaluation mode
            assert module.training == (False if target else expected[name]) or name in ("exploration", "multipliers"), name


def test_a_module_with_its_own_rule_for_attributes() -> None:
    class Counting(nn.Identity):
        changes: ClassVar[list[bool]] = []

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "training":
                self.changes.append(value)

    ours, _ = both()
    ours.actor.extra = Counting()
    Counting.changes.clear()
    ours.set_training_mode(not ours.training)
    ours.set_training_mode(not ours.training)
    assert len(Counting.changes) == 2


class Remembering(FlattenExtractor):
    """A user's features extractor that keeps what it has seen when acting, and uses it in training."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.gain = nn.Parameter(th.ones(()))
        self.seen: th.Tensor | None = None

    def forward(self, obs: th.Tensor) -> th.Tensor:
        if self.seen is None or not self.training:
            self.seen = obs.flatten(1).mean(0)
        return super().forward(obs) + self.gain * self.seen


def test_a_features_extractor_may_keep_tensors_of_acting_for_training() -> None:
    model = make(QSM, policy_kwargs={"features_extractor_class": Remembering}).learn(20)
    assert model._n_updates == 10


def test_a_users_policy_acts() -> None:
    model = make(QSM, policy=CautiousPolicy, policy_kwargs={"caution": 0.0}).learn(20)
    np.testing.assert_array_equal(model.predict(np.ones(3))[0], 0.0)


# -- what a step costs ------------------------------------------------------------------------------------------------


def counted(function: Callable[..., Any], name: str, counts: Counter[str]) -> Callable[..., Any]:
    """The function, counting its calls."""

    def call(*args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("n_envs", [1, 3])
def test_an_environment_step_costs_one_policy_call(n_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(DACER, vector_env(n_envs), learning_starts=0, gradient_steps=0)
    counts: Counter[str] = Counter()
    actor = model.actor
    for owner, name in ((model.policy, "_predict"), (actor, "extract_features"), (actor, "act"), (model.critic, "q")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name), name, counts))
    model.learn(10 * n_envs)
    assert counts == {"_predict": 10, "extract_features": 10, "act": 10}


class Kernels(TorchDispatchMode):
    """Names of the operations that compute something, in contrast to those that make views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [result.alias_info for result in func._schema.returns]
        if not aliases or any(alias is None or alias.is_write for alias in aliases):
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_a_batch_costs_one_gather(observation: str) -> None:
    model = make(QSM, PointEnv(observation), buffer_size=100).learn(10)
    with Kernels() as kernels:
        model.replay_buffer.sample(32)
    assert kernels.names == ["aten::index_select", "aten::addcmul"]
