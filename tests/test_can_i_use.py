"""The table "Can I use?" that the pages of all methods share (docs/algorithms/_can_i_use.md): every claim is tried."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion import QSM
from tests.environments import PointEnv, vector_env
from tests.helpers import act, all_finite, make, observations, sample_batch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "algorithms" / "_can_i_use.md"
TEXT = PAGE.read_text(encoding="utf-8")
YES, NO = "✔️", "❌"
#: What is before the colon -> what is behind it.
CLAIMS = dict(re.findall(r"^\* ([^:\n]+): (.+)$", TEXT, re.MULTILINE))
#: Space, whether it can be one of actions, and of observations.
SPACES = re.findall(rf"^\| `(\w+)` \| ({YES}|{NO}) \| ({YES}|{NO}) \|$", TEXT, re.MULTILINE)

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
EXAMPLES: dict[str, list[spaces.Space]] = {
    "Box": [BOX, spaces.Box(0, 255, (36, 36, 3), np.uint8)],
    "Discrete": [spaces.Discrete(4)],
    "MultiDiscrete": [spaces.MultiDiscrete([3, 2])],
    "MultiBinary": [spaces.MultiBinary(3)],
    "Dict": [spaces.Dict({"vector": BOX, "number": spaces.Discrete(3)})],
}
ACTIONS = {
    "any shape": spaces.Box(-1.0, 1.0, (2, 1, 3), np.float32),
    "any finite bounds": spaces.Box(np.array([-300.0, 0.0], np.float32), np.array([-2.0, 1e-3], np.float32)),
}


class RandomEnv(gym.Env[Any, Any]):
    """Anything is observed, whatever is done."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return self.observation_space.sample(), 0.0, False, False, {}


def check_trained(model: Any, n_steps: int = 16) -> Any:
    model.learn(n_steps)
    assert model._n_updates > 0 and all_finite(model)
    return model


def several_environments() -> None:
    assert check_trained(make(QSM, vector_env(3)), 18).replay_buffer.n_envs == 3


def n_step_returns() -> None:
    """The limit is that of Stable-Baselines3's buffer, see the page."""
    for observation in ("box", "dict", "image"):
        model = check_trained(make(QSM, PointEnv(observation, truncate_after=5), n_steps=3, gamma=0.9, batch_size=64))
        discounts = np.unique(np.asarray(sample_batch(model, 64).discounts).round(4))
        np.testing.assert_allclose(discounts, [0.9**3, 0.9**2, 0.9], rtol=1e-3)  # the last two before the end of an episode


def hindsight_replay() -> None:
    model = make(QSM, BitFlippingEnv(n_bits=3, continuous=True), replay_buffer_class=HerReplayBuffer, n_steps=3)
    check_trained(model, 40)
    assert not hasattr(model.replay_buffer, "n_steps"), "it can: the page says that it stores single steps"


def vec_normalize() -> None:
    model = check_trained(make(QSM, VecNormalize(vector_env(1))))
    assert model.get_vec_normalize_env().obs_rms.count > 10


def recurrent_policies() -> None:
    assert not any("lstm" in name.lower() or "recurrent" in name.lower() for name in QSM.policy_aliases)
    _, state = make(QSM).predict(np.zeros(3, np.float32), state=None)
    assert state is None


CHECKS: dict[str, tuple[str, Callable[[], None]]] = {
    "Several environments": (YES, several_environments),
    "Recurrent policies": (NO, recurrent_policies),
    "n-step returns": (YES, n_step_returns),
    "Hindsight experience replay": (YES, hindsight_replay),
    "`VecNormalize`": (YES, vec_normalize),
}


def test_every_claim_is_tried() -> None:
    assert CLAIMS.keys() == CHECKS.keys() and {name for name, _, _ in SPACES} == EXAMPLES.keys()
    assert len(re.findall(rf"{YES}|{NO}", TEXT)) == len(CLAIMS) + 2 * len(SPACES), "there is a mark outside of the lists"


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_can_be_used(claim: str) -> None:
    mark, check = CHECKS[claim]
    assert CLAIMS[claim].startswith(mark)
    check()


@pytest.mark.parametrize(("name", "mark"), [(name, mark) for name, _, mark in SPACES])
def test_spaces_of_observations(name: str, mark: str) -> None:
    for space in EXAMPLES[name]:
        assert mark == YES, "the page says no, and here is no test that it is refused"
        model = check_trained(make(QSM, RandomEnv(space, BOX)))
        assert act(model, observations(space, 3)).shape == (3, 2)


@pytest.mark.parametrize(("name", "mark"), [(name, mark) for name, mark, _ in SPACES])
def test_spaces_of_actions(name: str, mark: str) -> None:
    if mark == NO:
        with pytest.raises((AssertionError, ValueError), match=r"(?i)action"):
            make(QSM, RandomEnv(BOX, EXAMPLES[name][0]))
        return
    assert name == "Box"
    assert all(words in TEXT for words in ("any shape", "any finite bounds"))
    for space in ACTIONS.values():
        actions = act(check_trained(make(QSM, RandomEnv(BOX, space))), observations(BOX, 3))
        assert all(space.contains(action) for action in actions)
    for low, high in ((-np.inf, 1.0), (0.0, np.inf)):
        with pytest.raises((AssertionError, ValueError), match=r"(?i)finite|infinite|bound"):
            make(QSM, RandomEnv(BOX, spaces.Box(low, high, (2,), np.float32)))
