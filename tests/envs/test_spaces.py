"""Spaces in which training would go wrong without a word are refused at construction; the others are learned in."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_diffusion import QSM
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.envs.spaces import check_action_space
from tests.environments import PointEnv
from tests.helpers import act, make, observations

Algorithm = type[OffPolicyDiffusion]
VECTOR, UNIT = spaces.Box(-2.0, 2.0, (3,)), spaces.Box(-1.0, 1.0, (2,))


class AnySpaces(gym.Env[Any, Any]):
    """
    Random observations of a space, and whatever actions come.

    :param observation_space: Observation space
    :param action_space: Action space
    """

    def __init__(self, observation_space: spaces.Space = VECTOR, action_space: spaces.Space = UNIT):
        self.observation_space = observation_space
        self.action_space: Any = action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert (action >= self.action_space.low).all() and (action <= self.action_space.high).all()
        self.n_steps += 1
        return self.observation_space.sample(), 1.0, False, self.n_steps % 5 == 0, {}


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8])
def test_integer_actions_would_be_cut_off(algorithm: Algorithm, dtype: type) -> None:
    with pytest.raises(ValueError, match=r"action space Box\(.*holds integers.*float32 Box and round the action"):
        make(algorithm, AnySpaces(action_space=spaces.Box(0, 5, (2,), dtype)))


REFUSED_ACTIONS: dict[str, tuple[spaces.Space, str]] = {
    "equal bounds": (spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([1.0, 0.5], np.float32)), "bounds are equal"),
    "too wide": (spaces.Box(-3e38, 3e38, (2,), np.float32), "no finite width"),
    "infinite": (spaces.Box(-np.inf, np.inf, (2,)), "finite"),
    "half infinite": (spaces.Box(-1.0, np.inf, (2,)), "finite"),
    "empty": (spaces.Box(-1.0, 1.0, (0,)), "empty"),
    "Discrete": (spaces.Discrete(3), "only supports"),
    "MultiDiscrete": (spaces.MultiDiscrete([2, 3]), "only supports"),
    "MultiBinary": (spaces.MultiBinary(3), "only supports"),
}


@pytest.mark.parametrize("name", REFUSED_ACTIONS)
def test_other_actions_that_cannot_be_learned(name: str) -> None:
    space, reason = REFUSED_ACTIONS[name]
    with pytest.raises((ValueError, AssertionError), match=reason):  # the assertions are Stable-Baselines3's
        make(QSM, AnySpaces(action_space=space))
    with pytest.raises(ValueError, match=r"The action space .*"):
        check_action_space(space)


LEARNED_ACTIONS: dict[str, Any] = {
    "no axis": spaces.Box(-2.0, 0.5, ()),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "float16": spaces.Box(-2.0, 1.0, (2,), np.float16),
    "float64": spaces.Box(-2.0, 1.0, (2,), np.float64),
    "narrow": spaces.Box(-1e-3, 1e-3, (2,)),
}


@pytest.mark.parametrize("name", LEARNED_ACTIONS)
def test_boxes_of_every_shape_and_precision(name: str) -> None:
    space = LEARNED_ACTIONS[name]
    model = make(QSM, AnySpaces(action_space=space)).learn(25)
    assert model._n_updates > 0
    actions = act(model, observations(VECTOR, 4), deterministic=False)
    assert actions.shape == (4, *space.shape)
    stored = model.replay_buffer.actions[:25].astype(np.float64)
    assert np.isfinite(stored).all() and len(np.unique(stored)) > 5  # truncated ones take three values


REFUSED_OBSERVATIONS: dict[str, tuple[spaces.Space, str]] = {
    "Tuple": (spaces.Tuple((VECTOR, spaces.Discrete(2))), "Tuple"),
    "Text": (spaces.Text(5), "Text"),
    "Graph": (spaces.Graph(VECTOR, spaces.Discrete(2)), "Graph"),
    "Sequence": (spaces.Sequence(VECTOR), "Sequence"),
    "nested Dict": (spaces.Dict({"a": spaces.Dict({"b": VECTOR})}), "[Nn]ested"),
    "Dict with a Text": (spaces.Dict({"a": VECTOR, "name": spaces.Text(5)}), "entry 'name' .* Text"),
    "no axis": (spaces.Box(-1.0, 1.0, ()), r"shape \(1,\)"),
    "empty": (spaces.Box(-1.0, 1.0, (0,)), "no entry"),
    "Dict with an empty entry": (
        spaces.Dict({"a": VECTOR, "none": spaces.Box(-1.0, 1.0, (2, 0))}),
        "entry 'none' .* no entry",
    ),
    "Discrete from 5": (spaces.Discrete(3, start=5), "subtract 5"),
    "MultiDiscrete from 1": (spaces.MultiDiscrete([3, 2], start=[0, 1]), r"subtract \[0 1\]"),
}


@pytest.mark.parametrize("name", REFUSED_OBSERVATIONS)
def test_observations_that_no_network_reads(name: str) -> None:
    space, reason = REFUSED_OBSERVATIONS[name]
    with pytest.raises((ValueError, NotImplementedError), match=reason):
        make(QSM, AnySpaces(space))


READ_OBSERVATIONS: dict[str, Any] = {
    "int32": spaces.Box(-9, 9, (3,), np.int32),
    "uint8": spaces.Box(0, 9, (3,), np.uint8),
    "float16": spaces.Box(-2.0, 2.0, (3,), np.float16),
    "float64": spaces.Box(-2.0, 2.0, (3,), np.float64),
    "unbounded": spaces.Box(-np.inf, np.inf, (3,)),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(3),
}


@pytest.mark.parametrize("name", READ_OBSERVATIONS)
def test_observations_are_kept_and_learned_from(name: str) -> None:
    space = READ_OBSERVATIONS[name]
    seen: list[np.ndarray] = []

    class Noted(AnySpaces):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            result = super().step(action)
            seen.append(np.asarray(result[0]))
            return result

    model = make(QSM, Noted(space)).learn(14)
    assert model._n_updates > 0
    stored = model.replay_buffer.next_observations[:14, 0]
    np.testing.assert_allclose(stored.reshape(14, -1), np.array(seen).reshape(14, -1), rtol=1e-6)


def test_a_loaded_space_is_checked_too() -> None:
    model = QSM("DiffusionPolicy", PointEnv(), _init_setup_model=False)
    model.action_space = spaces.Box(-1, 1, (2,), np.int32)
    with pytest.raises(ValueError, match="holds integers"):
        model._setup_model()
