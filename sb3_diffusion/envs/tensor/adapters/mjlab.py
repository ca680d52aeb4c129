"""mjlab: the interface of Isaac Lab's manager-based environments, on MuJoCo-Warp, from the package index."""

import importlib.util
from typing import Any

import torch as th

from sb3_diffusion.envs.tensor.adapters.isaaclab import ActionBound, IsaacLabVecEnv
from sb3_diffusion.envs.tensor.observations import where
from sb3_diffusion.envs.tensor.step import TensorStep
from sb3_diffusion.names import suggest


class MjlabVecEnv(IsaacLabVecEnv):
    """
    An environment of mjlab as a :class:`~sb3_diffusion.envs.tensor.contract.TensorVecEnv`.

    mjlab can leave ended episodes alone and return their last observation (``cfg.auto_reset = False``, which is set here).
    They are then begun anew by this class within the same step, so that every final observation is known.

    :param env: ``ManagerBasedRlEnv``
    :param group: Observation group of the actor
    :param critic_group: Group that only critics may read, such as ``"critic"``
    :param action_bound: Largest absolute value of an action, one number or one for each dimension
    """

    def __init__(self, env: Any, group: str = "actor", critic_group: str | None = None, action_bound: ActionBound = 1.0):
        super().__init__(env, group, critic_group, action_bound, final_obs=False)
        self.simulator.cfg.auto_reset = False

    def step_simulator(self, actions: th.Tensor) -> TensorStep:
        """
        :param actions: Actions within the bounds
        :return: What happened
        """
        observed, reward, terminated, truncated, extras = self.env.step(actions)
        final, reward = self._groups.pick(observed), reward.clone()
        terminated, truncated = self._ends(terminated, truncated)
        done = terminated | truncated
        # the simulator itself asks which they are in every step, so that one more question costs little
        rows = done.nonzero().squeeze(-1)
        observation = final
        if len(rows):
            renewed, extras = self.env.reset(env_ids=rows)
            observation = where(done, self._groups.pick(renewed), final)
        return TensorStep(observation, reward, terminated, truncated, final, done, dict(extras.get("log", {})))


def make_mjlab(
    task: str, num_envs: int | None = None, device: str = "auto", seed: int | None = None, **settings: Any
) -> MjlabVecEnv:
    """
    :param task: Name of a task of mjlab, such as ``"Mjlab-Cartpole-Balance"``
    :param num_envs: Number of environments, that of the task by default
    :param device: Device; by default a GPU if there is one
    :param seed: Seed of everything that the simulator draws
    :param settings: Arguments of :class:`MjlabVecEnv`
    :return: The environment
    """
    if importlib.util.find_spec("mjlab") is None:
        raise ImportError(
            "mjlab is not installed; it needs a virtual environment without dm-control: pip install 'mjlab>=1.6,<2'"
        )
    import mjlab.tasks  # noqa: F401  (registers them)
    from mjlab.envs import ManagerBasedRlEnv
    from mjlab.tasks.registry import list_tasks, load_env_cfg

    if task not in list_tasks():
        raise ValueError(f"mjlab has no task {task!r}; {suggest(task, list_tasks())}")
    cfg = load_env_cfg(task)
    cfg.auto_reset, cfg.seed = False, seed
    if num_envs is not None:
        cfg.scene.num_envs = num_envs
    if device == "auto":
        device = "cuda:0" if th.cuda.is_available() else "cpu"
    return MjlabVecEnv(ManagerBasedRlEnv(cfg, device=device), **settings)
