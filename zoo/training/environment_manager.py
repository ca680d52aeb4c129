"""The environments of a training: made once before there is a folder, one by one or all copies in one object."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack
from typing_extensions import override

from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.tensor_names import is_tensor_env

from .environments import fit, tensor


class EnvironmentManager(ExperimentManager):
    """
    rl-zoo3's manager, which also makes environments that speak tensors: one object of all copies for the training, another one
    for evaluations unless the simulator allows one only. Arguments: see there.
    """

    _made: TensorVecEnv | None = None
    """The environment that was made to see whether it can be; the training takes it."""
    _simulation: TensorVecEnv | None = None
    """The only one of a simulator that allows no second one."""

    @property
    def speaks_tensors(self) -> bool:
        """Whether the environment is one object of many copies, stepped in tensors."""
        return is_tensor_env(self.env_name.gym_id)

    @property
    def has_one_simulation(self) -> bool:
        """Whether evaluations have to share the environment of the training."""
        return self.speaks_tensors and tensor.has_one_simulation(self.env_name.gym_id)

    @staticmethod
    def is_atari(env_id: str) -> bool:
        """Whether rl-zoo3 treats it as one; it looks names up that only ordinary environments have."""
        return not is_tensor_env(env_id) and ExperimentManager.is_atari(env_id)

    @staticmethod
    def is_minigrid(env_id: str) -> bool:
        """The same for that family."""
        return not is_tensor_env(env_id) and ExperimentManager.is_minigrid(env_id)

    def check_environment(
        self, wrap: Callable[[gym.Env], gym.Env] | None, policy: str | type, settings: dict[str, Any]
    ) -> None:
        """
        Make the environment once: what is wrong with it, or does not fit, is known before there is a folder.

        :param wrap: Wrappers of the settings
        :param policy: Name or class of the policy
        :param settings: All settings
        :raises ValueError: If it cannot be made, or does not fit
        """
        env_id, algorithm = self.env_name.gym_id, ALGOS[self.algo]
        if self.speaks_tensors:
            self._made = self._make_tensor_env(1 if self.optimize_hyperparameters else self.n_envs, eval_env=False)
            tensor.check(algorithm, self._made, env_id, {**settings, "vec_env": self.args.__dict__.get("vec_env", "dummy")})
            return
        env = fit.make(env_id, self.env_kwargs, wrap)
        try:
            fit.check(algorithm, policy, env, self.normalize_kwargs if self.normalize else None, self.frame_stack)
        finally:
            env.close()
        if self.eval_env_kwargs != self.env_kwargs:
            fit.make(env_id, self.eval_env_kwargs, wrap, "--eval-env-kwargs").close()

    @override
    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        if not self.speaks_tensors:
            return super().create_envs(n_envs, eval_env, no_log)
        env: VecEnv = self._tensor_env(n_envs, eval_env)
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        env = self._maybe_normalize(env, eval_env)
        return env if self.frame_stack is None else VecFrameStack(env, self.frame_stack)

    def _tensor_env(self, n_envs: int, eval_env: bool) -> TensorVecEnv:
        if self._simulation is not None:
            return self._simulation
        if eval_env:
            return self._make_tensor_env(tensor.copies_of_evaluation(n_envs, self.n_eval_episodes), eval_env=True)
        made, self._made = self._made, None
        if made is None or made.num_envs != n_envs:
            made = self._make_tensor_env(n_envs, eval_env=False)
        return made

    def _make_tensor_env(self, n_envs: int, eval_env: bool) -> TensorVecEnv:
        kwargs, option = (self.eval_env_kwargs, "--eval-env-kwargs") if eval_env else (self.env_kwargs, "--env-kwargs")
        env = tensor.make(self.env_name.gym_id, n_envs, kwargs, seed=self.seed, device=str(self.device), option=option)
        if self.has_one_simulation:
            self._simulation = env
            # rl-zoo3 closes environments before the agent is evaluated; the application ends with the process
            env.close = lambda: None  # type: ignore[method-assign]
        return env
