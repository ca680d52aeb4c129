"""An update that diverged names the cause: the environment, too large numbers, the weights, or the learning rate."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion import DIME, QSM
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.divergence import likely_cause
from sb3_diffusion.core.reporting.metrics import TrainingDiverged
from tests.environments import PointEnv, vector_env
from tests.helpers import make, make_filled, with_logger

Algorithm = type[OffPolicyDiffusion]
BLAMES_THE_ENVIRONMENT = "check what the environment returns"


class Faulty(PointEnv):
    """
    Goes wrong at the seventh step of every episode.

    :param fault: What becomes of the observation and the reward there
    """

    def __init__(self, fault: Callable[[Any, float], tuple[Any, float]], **kwargs: Any):
        super().__init__(**kwargs)
        self.fault = fault

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        if self.n_steps == 7:
            observation, reward = self.fault(observation, reward)
        return observation, reward, *rest


class Faithful(PointEnv):
    """Returns what it is given: an action that is not finite leads to such observations and rewards."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        spoilt = 0.0 * float(np.sum(action))
        return observation + spoilt, reward + spoilt, *rest


def diverging(model: Any, n_steps: int = 200) -> str:
    with pytest.raises(TrainingDiverged) as caught:
        model.learn(n_steps)
    return str(caught.value)


def test_a_learning_rate_beyond_reason_is_blamed(algorithm: Algorithm) -> None:
    """Also where its actions were no numbers any more and the environment could only return the like."""
    message = diverging(make(algorithm, Faithful(), learning_rate=1e9, policy_delay=1))
    assert "learning rate" in message and "1e+09" in message and "rescale the rewards" in message
    assert BLAMES_THE_ENVIRONMENT not in message


FAULTS: dict[str, tuple[Callable[[Any, float], tuple[Any, float]], str]] = {
    "NaN reward": (lambda observation, reward: (observation, np.nan), "non-finite rewards"),
    "infinite reward": (lambda observation, reward: (observation, -np.inf), "non-finite rewards"),
    "infinite observation": (lambda observation, reward: (observation * np.inf, reward), "non-finite next_observations"),
    "huge reward": (lambda observation, reward: (observation, 1e30), r"rewards as large as 1e\+30"),
    "huge observation": (lambda observation, reward: (observation * 0 + 1e30, reward), "observations as large as"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_environment_is_blamed(name: str) -> None:
    fault, reason = FAULTS[name]
    with np.errstate(all="ignore"):
        message = diverging(make(QSM, Faulty(fault), learning_starts=5))
    assert BLAMES_THE_ENVIRONMENT in message and "learning rate" not in message
    assert len(re.findall(reason, message)) == 1, message


@pytest.mark.parametrize("network", ["actor", "critic"])
@pytest.mark.parametrize("algorithm", [QSM, DIME])
def test_weights_that_were_set_are_suspected(algorithm: Algorithm, network: str) -> None:
    """Before the first update it cannot be the learning rate; in an episode the actions tell of it."""
    model = make_filled(algorithm)
    with th.no_grad():
        next(getattr(model, network).parameters()).fill_(np.nan)
    with pytest.raises(TrainingDiverged, match=r"no update had been made.*check the weights that were loaded or set"):
        model.train(1, 8)

    acting = make(algorithm, Faithful(), learning_starts=5)
    with th.no_grad():
        for parameter in acting.actor.parameters():
            parameter.fill_(np.nan)
    acting.train = lambda *args, **kwargs: None
    acting.learn(20)
    del acting.train
    with pytest.raises(TrainingDiverged, match=r"non-finite actions .*loaded or set by hand, check them"):
        with_logger(acting).train(3, 32)


def cause(model: Any, env: VecNormalize | None = None) -> str:
    return likely_cause(model.replay_buffer, env, {"actor": 1e-3, "critic": 2e-3}, untrained=False)


def test_the_oldest_transition_decides() -> None:
    model = make(QSM, vector_env(2), buffer_size=20, learning_starts=100).learn(12)
    buffer = model.replay_buffer
    assert "actor 0.001, critic 0.002" in cause(model)
    buffer.observations[4, 1] = buffer.actions[4, 1] = buffer.rewards[4, 1] = np.nan  # what a policy makes of the state
    buffer.next_observations[3, 1] = np.nan
    assert "non-finite next_observations" in cause(model)
    buffer.actions[3, 1] = np.nan
    assert "non-finite actions" in cause(model)
    buffer.rewards[3, 0] = np.inf  # of the other environment, at an action in order
    assert "non-finite rewards" in cause(model)
    buffer.rewards[3, 0] = 0.0
    buffer.full, buffer.pos = True, 4  # the ring begins behind the newest transition: row 4 is the oldest now
    assert "non-finite observations" in cause(model)


def test_dict_observations_and_normalisation() -> None:
    model = make(QSM, PointEnv("dict"), learning_starts=100).learn(12)
    model.replay_buffer.observations["point"][3] = np.inf
    assert "non-finite observations['point']" in cause(model)

    env = VecNormalize(DummyVecEnv([PointEnv]))
    model = make(QSM, env, learning_starts=100).learn(12)
    model.replay_buffer.rewards[3] = 1e30
    assert "the update itself diverged" in cause(model, env)  # it is divided by a deviation that knows it
    assert "rewards as large as 1e+30" in cause(model)
    statistics: Any = env.obs_rms
    statistics.mean[:] = np.nan
    assert "statistics of VecNormalize" in cause(model, env)


def test_a_shared_observation_memory_and_an_empty_buffer() -> None:
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = make(QSM, learning_starts=100, **kwargs)
    assert "the update itself diverged" in cause(model)
    model.learn(12)
    model.replay_buffer.observations[5] = np.nan
    assert "non-finite observations" in cause(model)
