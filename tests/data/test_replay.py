"""Our replay buffers against Stable-Baselines3's, transition by transition."""

import copy
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common import buffers
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion import DACER, QSM
from sb3_diffusion.data.replay import TensorDictReplayBuffer, TensorNStepReplayBuffer, TensorReplayBuffer, default_buffer_class
from tests.environments import OBSERVATIONS, PointEnv, vector_env
from tests.helpers import assert_identical, flat_parameters, make, make_filled

ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
UNSAFE: dict[str, Any] = {"optimize_memory_usage": True, "handle_timeout_termination": False}
MANY = spaces.Dict(
    {
        "small": spaces.Box(-1.0, 1.0, (3,), np.float64),
        "camera": spaces.Box(0, 255, (1, 36, 36), np.uint8),
        "which": spaces.Discrete(5),
        "bits": spaces.MultiBinary(3),
        "kinds": spaces.MultiDiscrete([3, 4]),
        "matrix": spaces.Box(-1.0, 1.0, (2, 2), np.float16),
    }
)
SPACES = {**OBSERVATIONS, "bits": spaces.MultiBinary(5), "many": MANY}

CASES: dict[str, tuple[type[ReplayBuffer], dict[str, Any]]] = {
    "plain": (ReplayBuffer, {}),
    "one environment": (ReplayBuffer, {"n_envs": 1}),
    "without timeouts": (ReplayBuffer, {"handle_timeout_termination": False}),
    "memory-optimised": (ReplayBuffer, UNSAFE),
    "2 steps": (NStepReplayBuffer, {"n_steps": 2, "gamma": 0.9}),
    "5 steps": (NStepReplayBuffer, {"n_steps": 5, "gamma": 0.97}),
    "3 steps, one environment": (NStepReplayBuffer, {"n_steps": 3, "gamma": 0.99, "n_envs": 1}),
}


def twin(cls: type[ReplayBuffer]) -> Any:
    """Our class in the role of Stable-Baselines3's."""
    roles = {
        ReplayBuffer: TensorReplayBuffer,
        NStepReplayBuffer: TensorNStepReplayBuffer,
        DictReplayBuffer: TensorDictReplayBuffer,
    }
    return roles[cls]


def pair(
    cls: type[ReplayBuffer] = ReplayBuffer, observation: str = "box", size: int = 60, storage: str = "auto", **kwargs: Any
) -> tuple[Any, Any]:
    """Stable-Baselines3's buffer and ours."""
    kwargs = {"device": "cpu", "n_envs": 3, **kwargs}
    arguments = (size, SPACES[observation], ACTIONS)
    return cls(*arguments, **kwargs), twin(cls)(*arguments, storage=storage, **kwargs)


def transitions(observation: str, n_envs: int, n: int, seed: int = 0) -> Iterator[tuple[Any, ...]]:
    """Arguments of ``add()``: random transitions, a third of which end an episode, half of those by a time limit."""
    space = copy.deepcopy(SPACES[observation])
    space.seed(seed)
    rng = np.random.default_rng(seed)

    def observe() -> Any:
        samples = [space.sample() for _ in range(n_envs)]
        if isinstance(space, spaces.Dict):
            return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
        return np.stack(samples)

    for _ in range(n):
        done = rng.random(n_envs) < 0.3
        infos = [{"TimeLimit.truncated": bool(end and rng.random() < 0.5)} if end else {} for end in done]
        action = rng.uniform(-1.0, 1.0, (n_envs, 2)).astype(np.float32)
        yield observe(), observe(), action, rng.normal(size=n_envs), done, infos


def fill(both: tuple[Any, ...], n: int, observation: str = "box", seed: int = 0) -> None:
    for step in transitions(observation, both[0].n_envs, n, seed):
        for buffer in both:
            buffer.add(*copy.deepcopy(step))


def assert_same_sample(theirs: ReplayBuffer, ours: ReplayBuffer, env: VecNormalize | None = None, n: int = 200) -> Any:
    """Both draw the same transitions under the same seed, and leave the generator in the same state; returns ours."""
    samples: list[dict[str, Any]] = []
    for buffer in (theirs, ours):
        np.random.seed(1)
        samples.append({**buffer.sample(n, env=env)._asdict(), "next number": np.random.randint(1 << 30)})
    for name, expected in samples[0].items():
        if isinstance(expected, dict):
            expected = {key: _as_stored(item) for key, item in expected.items()}
        elif name.endswith("observations"):
            expected = _as_stored(expected)
        assert_identical(samples[1][name], expected, name)
    return samples[1]


def _as_stored(value: th.Tensor) -> th.Tensor:
    return value.float() if value.dtype == th.float64 else value


# -- the same transitions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 20, 33], ids=lambda n: f"{n} of 20")
@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_draws_the_same_transitions(case: str, n: int) -> None:
    cls, kwargs = CASES[case]
    size = 20 * kwargs.get("n_envs", 3)
    theirs, ours = pair(cls, size=size, **kwargs)
    fill((theirs, ours), n)
    assert (ours.pos, ours.full, ours.size()) == (theirs.pos, theirs.full, theirs.size())
    assert_same_sample(theirs, ours)


@pytest.mark.parametrize("observation", SPACES)
def test_every_observation_space(observation: str) -> None:
    cls = DictReplayBuffer if isinstance(SPACES[observation], spaces.Dict) else ReplayBuffer
    theirs, ours = pair(cls, observation, size=30)
    fill((theirs, ours), 13, observation)
    sample = assert_same_sample(theirs, ours)
    if observation == "image":
        assert sample["observations"].dtype == th.uint8
        assert ours.observations.dtype == np.uint8
    if observation == "float64":
        assert sample["observations"].dtype == th.float32
        assert ours.observations.nbytes == theirs.observations.nbytes / 2


@pytest.mark.parametrize("case", ["plain", "memory-optimised", "2 steps"])
def test_images(case: str) -> None:
    cls, kwargs = CASES[case]
    both = pair(cls, "image", size=30, **kwargs)
    fill(both, 13, "image")
    assert_same_sample(*both)


def test_n_step_returns_with_dict_observations() -> None:
    reference, _ = pair(NStepReplayBuffer, n_steps=3, gamma=0.9)
    ours = TensorDictReplayBuffer(60, SPACES["dict"], ACTIONS, device="cpu", n_envs=3, n_steps=3, gamma=0.9)
    for step, dict_step in zip(transitions("box", 3, 30), transitions("dict", 3, 30), strict=True):
        reference.add(*step)
        ours.add(*dict_step[:2], *step[2:])
    samples = []
    for buffer in (reference, ours):
        np.random.seed(0)
        samples.append(buffer.sample(100))
    for name in ("actions", "dones", "rewards", "discounts"):
        assert_identical(getattr(samples[0], name), getattr(samples[1], name))
    assert samples[1].next_observations["corner"].shape == (100, 1)  # type: ignore[index]


@pytest.mark.parametrize("case", ["plain", "memory-optimised", "2 steps"])
def test_vec_normalize(case: str) -> None:
    cls, kwargs = CASES[case]
    both = pair(cls, **kwargs)
    fill(both, 30)
    env = VecNormalize(vector_env(3), clip_obs=1.5, clip_reward=0.8)
    env.reset()
    for _ in range(12):
        env.step(np.full((3, 2), 0.7))
    assert_same_sample(*both, env=env)
    for switches in ((False, True), (True, False), (False, False)):
        env.norm_obs, env.norm_reward = switches
        assert_same_sample(*both, env=env)


def test_vec_normalize_of_chosen_keys() -> None:
    both = pair(DictReplayBuffer, "dict")
    fill(both, 15, "dict")
    env = VecNormalize(vector_env(3, observation="dict"), norm_obs_keys=["point"])
    env.reset()
    env.step(np.full((3, 2), 0.7))
    sample = assert_same_sample(*both, env=env)
    assert sample["observations"]["corner"].dtype == th.int64


class Doubling(VecNormalize):
    """Somebody's own normalisation."""

    def normalize_obs(self, obs: Any) -> Any:
        return {key: 2 * value for key, value in obs.items()} if isinstance(obs, dict) else 2 * obs

    def normalize_reward(self, reward: np.ndarray) -> np.ndarray:
        return (3 * reward).astype(np.float32)


@pytest.mark.parametrize("cls, observation", [(ReplayBuffer, "box"), (DictReplayBuffer, "dict"), (NStepReplayBuffer, "box")])
def test_overridden_vec_normalize(cls: type[ReplayBuffer], observation: str) -> None:
    both = pair(cls, observation)  # which have the same default n_steps, too
    fill(both, 15, observation)
    env: Any = VecNormalize(vector_env(3, observation=observation), norm_obs_keys=["point"] if observation == "dict" else None)
    env.__class__ = Doubling
    assert_same_sample(*both, env=env)


# -- what others see of a buffer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_arrays_are_those_of_stable_baselines3(observation: str) -> None:
    both = pair(DictReplayBuffer if observation == "dict" else ReplayBuffer, observation)
    fill(both, 15, observation)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        theirs, ours = (getattr(buffer, name) for buffer in both)
        for key in theirs if isinstance(theirs, dict) else [None]:
            expected, array = (theirs[key], ours[key]) if key else (theirs, ours)
            assert array.dtype == expected.dtype and array.shape == expected.shape
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("storage", ["host", "device"])
def test_writing_to_the_arrays_changes_what_is_sampled(storage: str) -> None:
    both = pair(storage=storage)
    fill(both, 30)
    assert_same_sample(*both)
    for buffer in both:
        buffer.rewards[:] = 7.0
        buffer.dones[buffer.pos - 1] = True
        buffer.observations[3, 1] += 1.0
        buffer.timeouts = np.zeros_like(buffer.timeouts)  # replacing an array is the same as writing to it
    sample = assert_same_sample(*both)
    assert sample["rewards"].unique().tolist() == [7.0]


def test_replacing_dict_observations() -> None:
    both = pair(DictReplayBuffer, "dict")
    fill(both, 15, "dict")
    for buffer in both:
        buffer.observations = {key: value + 1 for key, value in buffer.observations.items()}
    assert_same_sample(*both)


def test_no_next_observations_when_optimized() -> None:
    buffer = pair(ReplayBuffer, **UNSAFE)[1]
    assert not hasattr(buffer, "next_observations")
    with pytest.raises(AttributeError, match="next_observations"):
        _ = buffer.next_observations


def test_extend_and_reset() -> None:
    both = pair()
    steps = [list(field) for field in zip(*transitions("box", 3, 5), strict=True)]
    for buffer in both:
        buffer.extend(*steps)
    assert both[1].pos == 5
    assert_same_sample(*both)
    for buffer in both:
        buffer.reset()
    assert (both[1].pos, both[1].full, both[1].size()) == (0, False, 0)
    fill(both, 2, seed=1)
    assert_same_sample(*both)


# one environment, and what is said about its transition in other words
SAYINGS: dict[str, dict[str, Any]] = {
    "as a vector environment": {},
    "in lists": {"obs": [[0.1, 0.2, 0.3]], "next_obs": [[0.4, 0.5, 0.6]], "reward": [2.0], "done": [True]},
    "in tuples": {"obs": ((0.1, 0.2, 0.3),), "reward": (2.0,), "done": (True,)},
    "without the axis of the environments": {
        "obs": np.array([0.1, 0.2, 0.3]),
        "next_obs": np.array([0.4, 0.5, 0.6]),
        "action": np.array([0.5, -0.5]),
    },
    "in numbers": {"reward": 2.0, "done": True},
    "in NumPy's numbers": {"reward": np.float64(2.0), "done": np.bool_(True)},
    "in arrays without axes": {"reward": np.array(2.0), "done": np.array(True)},
    "in columns": {"reward": np.array([[2.0]]), "done": np.array([[1.0]]), "infos": [{"TimeLimit.truncated": [True]}]},
    "in lists of arrays": {"reward": [np.array([2.0])], "done": [np.array([1.0])]},
    "in tensors": {
        "obs": th.tensor([[0.1, 0.2, 0.3]]),
        "next_obs": th.tensor([[0.4, 0.5, 0.6]]),
        "action": th.tensor([[0.5, -0.5]]),
        "reward": th.tensor([2.0]),
        "done": th.tensor([True]),
    },
    "in integers": {"reward": np.array([2]), "done": np.array([1], np.int64)},
    "with the timeout of another buffer": {"infos": [{"TimeLimit.truncated": np.array([1.0], np.float32)}]},
    "with a timeout as a number": {"infos": [{"TimeLimit.truncated": np.float32(1.0)}]},
    "with a tuple of infos": {"infos": ({"TimeLimit.truncated": True, "episode": {"r": 1.0}},)},
}
SAID: dict[str, Any] = {
    "obs": np.array([[0.1, 0.2, 0.3]]),
    "next_obs": np.array([[0.4, 0.5, 0.6]]),
    "action": np.array([[0.5, -0.5]]),
    "reward": np.array([2.0]),
    "done": np.array([True]),
    "infos": [{"TimeLimit.truncated": True}],
}


def in_a_dict(step: dict[str, Any]) -> dict[str, Any]:
    """The same transition with a Dict observation."""
    observations = {name: {"point": step[name], "corner": np.array([2])} for name in ("obs", "next_obs")}
    return {**step, **observations}


@pytest.mark.parametrize("observation, cls", [("box", ReplayBuffer), ("dict", DictReplayBuffer), ("box", NStepReplayBuffer)])
@pytest.mark.parametrize("saying", SAYINGS)
def test_whatever_stable_baselines3_takes_is_taken(saying: str, observation: str, cls: type[ReplayBuffer]) -> None:
    step = {**SAID, **SAYINGS[saying]}
    both = pair(cls, observation, n_envs=1)
    for buffer in both:
        said = copy.deepcopy(in_a_dict(step) if observation == "dict" else step)
        buffer.add(**said)
        buffer.extend(*([value, value] for value in said.values()))
    theirs, ours = both
    assert ours.pos == 3 and ours.timeouts[0, 0] == 1.0
    assert_same_sample(theirs, ours)


@pytest.mark.parametrize(
    "change",
    [
        {"obs": np.zeros(3)},  # spread over the environments
        {"reward": 1.5, "done": False},
        {"reward": [1.0, 2.0, 3.0], "done": [[0.0, 1.0, 0.0]]},
        {"infos": [{"TimeLimit.truncated": True}]},
        {"infos": [{"TimeLimit.truncated": np.array(True)}, {}, {"TimeLimit.truncated": np.float32(1.0)}]},
        {"action": np.arange(6.0) / 10.0},
        {"action": np.arange(6.0).reshape(3, 1, 2) / 10.0},
    ],
    ids=str,
)
def test_whatever_stable_baselines3_takes_of_several_environments_is_taken(change: dict[str, Any]) -> None:
    both = pair()
    names = ("obs", "next_obs", "action", "reward", "done", "infos")
    for step in transitions("box", 3, 4):
        for buffer in both:
            buffer.add(**{**dict(zip(names, step, strict=True)), **change})
    assert_same_sample(*both)


@pytest.mark.parametrize("observation, cls", [("image", ReplayBuffer), ("many", DictReplayBuffer), ("discrete", ReplayBuffer)])
def test_transitions_of_another_buffer(observation: str, cls: type[ReplayBuffer]) -> None:
    source, _ = pair(cls, observation)
    fill((source,), 12, observation)
    both = pair(cls, observation)

    def at(stored: Any, i: int) -> Any:
        return {key: array[i] for key, array in stored.items()} if isinstance(stored, dict) else stored[i]

    for i in range(12):
        infos = [{"TimeLimit.truncated": timeout} for timeout in source.timeouts[i]]
        for buffer in both:
            observed = at(source.observations, i), at(source.next_observations, i)
            buffer.add(*observed, source.actions[i], source.rewards[i], source.dones[i], infos)
    assert_same_sample(*both)


@pytest.mark.parametrize(
    "change",
    [
        {"obs": np.zeros((3, 36, 36, 3), np.uint8)},  # the channels are the last axis: the numbers would be mixed up
        {"obs": np.zeros((2, 3, 36, 36), np.uint8)},
        {"action": np.zeros((2, 2))},
        {"reward": np.zeros(2)},
        {"infos": [{}, {}]},
        {"infos": []},
    ],
    ids=lambda change: f"{next(iter(change))} {np.shape(next(iter(change.values())))}",
)
def test_what_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    colours = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    step: dict[str, Any] = {"obs": np.zeros((3, 3, 36, 36)), "next_obs": np.zeros((3, 3, 36, 36)), "action": np.zeros((3, 2))}
    step = {**step, "reward": np.zeros(3), "done": np.zeros(3), "infos": [{}, {}, {}], **change}
    for cls in (ReplayBuffer, TensorReplayBuffer):
        buffer = cls(9, colours, ACTIONS, device="cpu", n_envs=3)
        with pytest.raises(ValueError, match=r"could not broadcast|cannot reshape"):
            buffer.add(**step)
        assert buffer.size() == 0


def test_samples_are_copies() -> None:
    buffer = pair()[1]
    fill((buffer,), 5)
    sample = buffer.sample(50)
    before = sample.observations.clone()
    buffer.observations[:] = 0.0
    assert th.equal(sample.observations, before)
    sample.rewards.zero_()
    assert not (buffer.rewards[:5] == 0.0).any()


def test_roles() -> None:
    assert default_buffer_class(SPACES["box"], 1) is TensorReplayBuffer
    assert issubclass(default_buffer_class(SPACES["box"], 3), NStepReplayBuffer)
    for n_steps in (1, 3):
        assert issubclass(default_buffer_class(SPACES["dict"], n_steps), DictReplayBuffer)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"optimize_memory_usage": True}, "handle_timeout_termination=True"),
        ({**UNSAFE, "n_steps": 3}, "n_steps=3"),
        ({"n_steps": 0}, "n_steps=0 must be at least 1"),
        ({"storage": "disk"}, "storage='disk'; known are auto, host, device"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorReplayBuffer(10, SPACES["box"], ACTIONS, device="cpu", **kwargs)
    with pytest.raises(ValueError, match="Dict observations"):
        TensorDictReplayBuffer(10, SPACES["dict"], ACTIONS, device="cpu", **UNSAFE)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_committed_as_the_buffer_fills() -> None:
    code = """
import numpy as np, psutil
from gymnasium import spaces
from sb3_diffusion.data.replay import TensorReplayBuffer
resident = lambda: psutil.Process().memory_info().rss / 2**20
before = resident()
space = spaces.Box(-1.0, 1.0, (100,), np.float32)
buffer = TensorReplayBuffer(1_000_000, space, spaces.Box(-1.0, 1.0, (2,), np.float32), device="cpu")
zero, done = np.zeros((1, 100)), np.zeros(1, bool)
for _ in range(100):
    buffer.add(zero, zero, np.zeros((1, 2)), np.zeros(1), done, [{}])
buffer.sample(64)
print(resident() - before, buffer._rows.nbytes / 2**20)
"""
    used, full = map(float, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert full > 700.0 and used < 50.0


def test_too_large_a_buffer_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 1000

    monkeypatch.setattr(buffers.psutil, "virtual_memory", Memory)
    with pytest.warns(UserWarning, match="buffer_size"):
        pair()


# -- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [7, 30])
@pytest.mark.parametrize("case", ["plain", "memory-optimised", "2 steps"])
def test_pickling_and_copying(case: str, n: int) -> None:
    cls, kwargs = CASES[case]
    theirs, ours = pair(cls, **kwargs)
    fill((theirs, ours), n)
    for restored in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        reference = copy.deepcopy(theirs)
        assert type(restored) is type(ours)
        assert_same_sample(reference, restored)
        fill((reference, restored), 9, seed=1)  # and it goes on where it was
        assert_same_sample(reference, restored)
    assert_same_sample(theirs, ours)


def test_only_the_filled_part_is_saved() -> None:
    buffer = TensorReplayBuffer(1_000_000, SPACES["box"], ACTIONS, device="cpu", n_envs=3)
    fill((buffer,), 10)
    assert len(pickle.dumps(buffer)) < 10_000


def test_dict_buffer_can_be_pickled() -> None:
    both = pair(DictReplayBuffer, "many")
    fill(both, 15, "many")
    assert_same_sample(both[0], pickle.loads(pickle.dumps(both[1])))


# -- copy on an accelerator, here played by the CPU -------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_copy_on_the_device_follows(case: str) -> None:
    cls, kwargs = CASES[case]
    n_envs = kwargs.get("n_envs", 3)
    both = pair(cls, size=20 * n_envs, storage="device", **kwargs)
    for seed, n in enumerate((1, 3, 1, 8, 6, 1, 2, 1, 25, 4, 0, 3)):  # crosses the end several times
        fill(both, n, seed=seed)
        assert_same_sample(*both)
    copied = both[1]._copy._copied
    assert copied is not None and copied.data_ptr() != both[1]._bytes.data_ptr()


def test_only_new_rows_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = TensorReplayBuffer(1_000, SPACES["box"], ACTIONS, device="cpu", storage="device")
    fill((buffer,), 10)
    buffer.sample(4)
    ranges: list[Any] = []
    new_ranges = buffer._copy._new_ranges

    def spy(*place: int) -> Any:
        ranges.append(new_ranges(*place))
        return ranges[-1]

    monkeypatch.setattr(buffer._copy, "_new_ranges", spy)
    buffer.sample(4)
    for step in transitions("box", 1, 2):
        buffer.add(*step)
    buffer.sample(4)
    assert ranges == [[], [(10, 12)]]


def test_copy_on_the_device_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_diffusion.data.device_copy._FIRST_ROWS", 6)
    both = pair(size=600, storage="device")
    sizes = []
    for seed in range(6):
        fill(both, 5, seed=seed)
        assert_same_sample(*both)
        sizes.append(len(both[1]._copy._copied))  # type: ignore[arg-type]
    assert sizes[0] < sizes[-1] < 600


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("storage", ["host", "device", "auto"])
@pytest.mark.parametrize("case", CASES)
def test_samples_on_cuda(case: str, storage: str) -> None:
    cls, kwargs = CASES[case]
    both = pair(cls, storage=storage, device="cuda", **kwargs)
    env = VecNormalize(vector_env(3))
    env.reset()
    for seed, n in enumerate((1, 8, 25, 0, 3)):
        fill(both, n, seed=seed)
        samples = []
        for buffer in both:
            np.random.seed(seed)
            samples.append({name: value for name, value in buffer.sample(50, env=env)._asdict().items() if value is not None})
        th.testing.assert_close(samples[1], samples[0])
        assert samples[1]["actions"].device.type == "cuda"
    assert (both[1]._copy._copied is None) == (storage == "host")
    both[1].device = th.device("cpu")  # as load_replay_buffer() does
    assert both[1].sample(5).actions.device.type == "cpu"


# -- in the algorithms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["plain", "n-step", "memory-optimised", "Dict", "VecNormalize"])
def test_training_is_that_with_stable_baselines3s_buffer(case: str) -> None:
    cases: dict[str, dict[str, Any]] = {
        "n-step": {"n_steps": 3},
        "memory-optimised": {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    }
    kwargs = cases.get(case, {})
    theirs: dict[str, Any] = {"replay_buffer_class": DictReplayBuffer if case == "Dict" else ReplayBuffer}
    if case == "n-step":
        theirs = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.99}}
    weights = []
    for ours in (True, False):
        env: Any = vector_env(2, observation="dict" if case == "Dict" else "box", terminate_after=7)
        env = VecNormalize(env) if case == "VecNormalize" else env
        arguments = kwargs if ours else {**kwargs, **theirs, "n_steps": 1}
        model = make(DACER, env, buffer_size=40, **arguments).learn(60)
        assert isinstance(model.replay_buffer, TensorReplayBuffer) == ours
        weights.append(flat_parameters(model.policy))
    assert th.equal(*weights)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_loaded_model_has_the_same_buffer(n_steps: int, tmp_path: pathlib.Path, recwarn: pytest.WarningsRecorder) -> None:
    model = make_filled(QSM, n_steps=n_steps, gamma=0.9)
    assert model.n_steps == n_steps and model.replay_buffer_kwargs == {}
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded: Any = QSM.load(tmp_path / "model", env=PointEnv(), device="cpu")
    assert type(loaded.replay_buffer) is type(model.replay_buffer)
    assert (loaded.replay_buffer.n_steps, loaded.replay_buffer.gamma) == (n_steps, 0.9)
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert_same_sample(model.replay_buffer, loaded.replay_buffer)
    assert not [warning for warning in recwarn if "n_steps" in str(warning.message)]

    # continued training is the same, whether the model has been saved in between or not
    weights = []
    for one in (model, loaded):
        one.set_env(PointEnv())
        one.set_random_seed(5)
        one.learn(20, reset_num_timesteps=False)
        weights.append(flat_parameters(one.policy))
    assert th.equal(*weights)


def test_n_step_returns_of_dict_observations_in_training() -> None:
    model = make(QSM, vector_env(2, observation="dict"), n_steps=3).learn(30)
    assert type(model.replay_buffer) is TensorDictReplayBuffer and model.replay_buffer.n_steps == 3


def test_stable_baselines3s_buffers_can_be_selected(tmp_path: pathlib.Path) -> None:
    cases: list[tuple[type[ReplayBuffer], dict[str, Any]]] = [
        (ReplayBuffer, {}),
        (NStepReplayBuffer, {"replay_buffer_kwargs": {"n_steps": 2}}),
        (DictReplayBuffer, {"env": PointEnv("dict")}),
        (HerReplayBuffer, {"env": BitFlippingEnv(n_bits=3, continuous=True), "learning_starts": 15}),
    ]
    for cls, kwargs in cases:
        model = make(QSM, replay_buffer_class=cls, **kwargs).learn(20)
        assert type(model.replay_buffer) is cls
        model.save(tmp_path / "model")
        assert type(QSM.load(tmp_path / "model", env=model.get_env(), device="cpu").replay_buffer) is cls


def test_a_saved_buffer_of_stable_baselines3_can_be_loaded(tmp_path: pathlib.Path) -> None:
    make_filled(QSM, replay_buffer_class=ReplayBuffer).save_replay_buffer(tmp_path / "buffer")
    model = make_filled(QSM)
    model.load_replay_buffer(tmp_path / "buffer")
    assert type(model.replay_buffer) is ReplayBuffer
    model.train(2, 8)


class OwnBuffer(TensorReplayBuffer):
    """A user's buffer that draws in its own way."""

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        return self._get_samples(np.zeros(batch_size, np.int64), env)


def test_a_subclass_decides_what_is_sampled() -> None:
    model = make_filled(QSM, replay_buffer_class=OwnBuffer, n_steps=2)
    assert model.replay_buffer.n_steps == 2
    batches: list[Any] = []

    def spy(batch: Any, due: Any) -> dict[str, Any]:
        batches.append(batch)
        return {"actor_loss": th.zeros(())}

    model._run_update = spy
    model.train(1, 8)
    np.testing.assert_array_equal(batches[0].actions.unique(dim=0).numpy(), model.replay_buffer.actions[0])
