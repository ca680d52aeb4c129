"""The adapter of MuJoCo Playground, on a task of one line; where there is no JAX, nothing of this can run."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch as th

from sb3_diffusion.envs.tensor import PlaygroundVecEnv, check_tensor_env

jax = pytest.importorskip("jax")


@jax.tree_util.register_pytree_node_class
class State(SimpleNamespace):
    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        names = tuple(sorted(vars(self)))
        return tuple(vars(self)[name] for name in names), names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: tuple[Any, ...]) -> "State":
        return cls(**dict(zip(names, values, strict=True)))


class Counter:
    """The state is 100 plus the steps, and a number drawn at the start; a negative action ends the episode."""

    action_size = 1

    def __init__(self, entries: bool = False):
        self.entries = entries
        self.observation_size: Any = {"state": (2,), "privileged_state": 3} if entries else 2

    def observe(self, data: Any) -> Any:
        if not self.entries:
            return data
        return {"state": data, "privileged_state": jax.numpy.concatenate((data, data[:1]))}

    def reset(self, key: Any) -> Any:
        data = jax.numpy.stack((jax.numpy.float32(100.0), jax.random.uniform(key)))
        zero = jax.numpy.float32(0.0)
        return State(data=data, obs=self.observe(data), reward=zero, done=zero, info={"rng": key})

    def step(self, state: Any, action: Any) -> Any:
        data = state.data.at[0].add(1.0)
        key, _ = jax.random.split(state.info["rng"])
        done = (action[0] < 0.0).astype(jax.numpy.float32)
        return State(data=data, obs=self.observe(data), reward=action[0], done=done, info={"rng": key})


def test_limits_and_resets_are_compiled_in() -> None:
    env = PlaygroundVecEnv(Counter(), 4, max_episode_length=5, device="cpu")
    env.seed(0)
    first = env.reset_tensor()
    assert isinstance(first, th.Tensor) and first[:, 0].tolist() == [100.0] * 4 and len(set(first[:, 1].tolist())) == 4
    actions = th.full((4, 1), 0.5)
    steps = [env.step_tensor(actions) for _ in range(2)]
    actions[0] = -1.0
    steps.append(env.step_tensor(actions))
    assert steps[2].terminated.tolist() == [True, False, False, False] and not steps[2].truncated.any()
    assert steps[2].reward.tolist() == [-1.0, 0.5, 0.5, 0.5]
    actions[0] = 0.5
    steps += [env.step_tensor(actions) for _ in range(2)]
    last = steps[4]
    assert last.truncated.tolist() == [False, True, True, True] and last.final_valid.tolist() == [False, True, True, True]
    assert isinstance(last.final_observation, th.Tensor) and isinstance(last.observation, th.Tensor)
    assert last.final_observation[:, 0].tolist() == [102.0, 105.0, 105.0, 105.0]
    assert last.observation[:, 0].tolist() == [102.0, 100.0, 100.0, 100.0]
    assert set(last.observation[:, 1].tolist()) <= set(first[:, 1].tolist())  # from the pool of first states


def test_the_contract_is_kept() -> None:
    env = PlaygroundVecEnv(Counter(entries=True), 6, max_episode_length=5, critic_group="privileged_state", device="cpu")
    check_tensor_env(env, n_steps=20)
    assert env.privileged == ("privileged_state",) and env.randomize_phases()
    env.max_episode_length = 2
    env.reset_tensor()
    assert [bool(env.step_tensor(th.ones(6, 1)).truncated.all()) for _ in range(4)] == [False, True, False, True]


def test_a_seed_fixes_it() -> None:
    env = PlaygroundVecEnv(Counter(), 4, max_episode_length=3, device="cpu")
    runs = []
    for seed in (1, 1, 2):
        env.seed(seed)
        env.reset_tensor()
        runs.append(th.stack([env.step_tensor(th.ones(4, 1)).observation for _ in range(5)]))  # type: ignore[arg-type,misc]
    assert th.equal(runs[0], runs[1]) and not th.equal(runs[0], runs[2])
