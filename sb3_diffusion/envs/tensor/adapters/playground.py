"""MuJoCo Playground, which is written in JAX: compiled there, shared with PyTorch through DLPack, without a copy."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch as th
from torch.utils.dlpack import from_dlpack

from sb3_diffusion.envs.tensor.adapters.groups import ObservationGroups
from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.envs.tensor.observations import Observation, box
from sb3_diffusion.envs.tensor.step import TensorStep
from sb3_diffusion.names import suggest
from sb3_diffusion.numeric import integer


class PlaygroundVecEnv(TensorVecEnv):
    """
    Many copies of a task of Playground, or of anything with its functions ``reset(key)`` and ``step(state, action)``, as a
    :class:`~sb3_diffusion.envs.tensor.contract.TensorVecEnv`.

    The task knows neither a time limit nor a reset, so both are compiled in here, and every final observation is known.
    Setting a simulation up costs much more than a step of it. The states in which episodes begin are therefore made once, as
    many as there are environments, and drawn from at random afterwards; :meth:`reset_tensor` makes new ones.

    :param env: The task
    :param num_envs: Number of environments
    :param max_episode_length: Steps after which an episode is truncated
    :param group: Entry of a ``Dict`` observation that everybody may read
    :param critic_group: Entry that only critics may read, such as ``"privileged_state"``
    :param device: Device of the tensors, the one that JAX computes on; ``"auto"`` takes that
    """

    def __init__(
        self,
        env: Any,
        num_envs: int,
        max_episode_length: int,
        group: str = "state",
        critic_group: str | None = None,
        device: th.device | str = "auto",
    ):
        import jax

        self.env = env
        sizes = env.observation_size
        self._is_dict = hasattr(sizes, "items")
        shapes = {key: _shape(size) for key, size in (sizes.items() if self._is_dict else ((group, sizes),))}
        self._groups = ObservationGroups(
            SimpleNamespace(spaces={key: box(shape) for key, shape in shapes.items()}), group, critic_group
        )
        if device == "auto":
            device = "cuda" if jax.default_backend() in ("gpu", "cuda") else "cpu"
        super().__init__(
            num_envs, self._groups.space, box((env.action_size,), -1.0, 1.0), device, None, self._groups.privileged
        )
        self._limit = integer("max_episode_length", max_episode_length, low=1)
        self._reset = jax.jit(jax.vmap(env.reset))
        self._step = jax.jit(self._compiled_step)
        self._key = jax.random.key(0)

    def reset_simulator(self, seed: int | None) -> Observation:
        """
        :param seed: Seed of everything that JAX draws
        :return: The first observations
        """
        import jax
        import jax.numpy as jnp

        self._key = self._key if seed is None else jax.random.key(seed)
        self._key, draw = jax.random.split(self._key)
        self._first = self._state = self._reset(jax.random.split(draw, self.num_envs))
        self._steps = jnp.zeros(self.num_envs, jnp.int32)
        return self._seen(self._state.obs)

    def step_simulator(self, actions: th.Tensor) -> TensorStep:
        """
        :param actions: Actions within the bounds
        :return: What happened
        """
        import jax.numpy as jnp

        shared = jnp.from_dlpack(actions.contiguous())
        self._state, self._steps, self._key, told = self._step(
            self._state, self._first, self._steps, self._key, shared, self._limit
        )
        observation, final, reward, terminated, truncated = told
        terminated, truncated = from_dlpack(terminated).bool(), from_dlpack(truncated).bool()
        return TensorStep(
            observation=self._seen(observation),
            reward=from_dlpack(reward).float(),
            terminated=terminated,
            truncated=truncated,
            final_observation=self._seen(final),
            final_valid=terminated | truncated,
        )

    def read_limit(self) -> int:
        """
        :return: Steps after which an episode is truncated
        """
        return self._limit

    def write_limit(self, steps: int) -> None:
        """
        :param steps: Steps after which an episode is truncated
        """
        self._limit = steps

    def randomize_phases(self) -> bool:
        """
        Set the clock of every running episode to a random time before its limit.

        :return: That it was possible
        """
        import jax.numpy as jnp

        phases = th.randint(self._limit, (self.num_envs,), generator=self.generator, device=self.device, dtype=th.int32)
        self._steps = jnp.from_dlpack(phases)
        return True

    def _seen(self, observed: Any) -> Observation:
        groups = observed if self._is_dict else {next(iter(self._groups.names)): observed}
        return self._groups.pick({name: from_dlpack(groups[name]) for name in self._groups.names})

    def _compiled_step(self, state: Any, first: Any, steps: Any, key: Any, action: Any, limit: Any) -> Any:
        """One step in JAX: simulate, find the ends of episodes, put first states there."""
        import jax
        import jax.numpy as jnp

        last = jax.vmap(self.env.step)(state, action)
        steps = steps + 1
        terminated = last.done > 0.5
        truncated = (steps >= limit) & ~terminated
        done = terminated | truncated
        key, draw = jax.random.split(key)
        rows = jax.random.randint(draw, (self.num_envs,), 0, self.num_envs)

        def renew(fresh: Any, old: Any) -> Any:
            if fresh.ndim == 0 or fresh.shape[0] != self.num_envs:
                return old  # what all environments share
            return jnp.where(done.reshape(-1, *(1,) * (fresh.ndim - 1)), fresh[rows], old)

        renewed = jax.tree.map(renew, first, last)
        if "rng" in last.info:  # the first state's would draw the same numbers in every episode
            renewed.info["rng"] = last.info["rng"]
        told = renewed.obs, last.obs, last.reward, terminated.astype(jnp.uint8), truncated.astype(jnp.uint8)
        return renewed, jnp.where(done, 0, steps), key, told


def make_playground(
    task: str,
    num_envs: int | None = None,
    device: str = "auto",
    seed: int | None = None,
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> PlaygroundVecEnv:
    """
    :param task: Name of a task of Playground, such as ``"CheetahRun"``
    :param num_envs: Number of environments, 1024 by default
    :param device: Device, the one that JAX computes on
    :param seed: Seed of everything that is drawn
    :param config: Changes of the task's configuration; on a CPU ``{"impl": "jax"}`` is faster, and is the default there
    :param settings: Arguments of :class:`PlaygroundVecEnv`
    :return: The environment
    """
    if importlib.util.find_spec("mujoco_playground") is None:
        raise ImportError("MuJoCo Playground is not installed: pip install 'playground>=0.2,<0.3' mujoco-mjx jax")
    import jax
    from mujoco_playground import registry

    if task not in registry.ALL_ENVS:
        raise ValueError(f"Playground has no task {task!r}; {suggest(task, registry.ALL_ENVS)}")
    if config is None:
        config = {"impl": "jax"} if jax.default_backend() == "cpu" else {}
    settings.setdefault("max_episode_length", int(registry.get_default_config(task).episode_length))
    env = registry.load(task, config_overrides=config)
    made = PlaygroundVecEnv(env, num_envs or 1024, device=device, **settings)
    made.seed(seed)
    return made


def _shape(size: Any) -> tuple[int, ...]:
    return tuple(np.atleast_1d(size).tolist())
