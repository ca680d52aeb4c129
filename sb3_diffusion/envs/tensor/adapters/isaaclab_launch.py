"""Start Isaac Lab's application and make one of its tasks; release 2.3 and 3.0 want it done in different orders."""

import atexit
import importlib.util
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import gymnasium as gym

from sb3_diffusion.envs.tensor.adapters.isaaclab import IsaacLabVecEnv
from sb3_diffusion.envs.tensor.adapters.isaaclab_names import resolve_isaac_task


def make_isaaclab(
    task: str,
    num_envs: int | None = None,
    device: str = "auto",
    seed: int | None = None,
    final_obs: bool | str = "auto",
    headless: bool = True,
    **settings: Any,
) -> IsaacLabVecEnv:
    """
    Make a task of Isaac Lab, whose application is launched on the way and closed at the end of the process.

    :param task: Name of a task, under its old or new name (:mod:`~sb3_diffusion.envs.tensor.adapters.isaaclab_names`)
    :param num_envs: Number of environments, that of the task by default
    :param device: Device of the simulation; by default what the task says
    :param seed: Seed of the simulation
    :param final_obs: Whether the last observations of episodes are computed, where the release can do that: ``"auto"`` and
        ``True``; ``False`` saves the time that it takes
    :param headless: Whether to do without a window
    :param settings: Arguments of :class:`~sb3_diffusion.envs.tensor.adapters.isaaclab.IsaacLabVecEnv`
    :return: The environment
    """
    if importlib.util.find_spec("isaaclab") is None:
        raise ImportError(
            f"{task} needs Isaac Lab, which is not installed: release 3.0 runs on Python 3.12, release 2.3 on Python 3.11 "
            "with Isaac Sim; follow its installation guide, then run this again in that environment."
        )
    chosen = {} if device == "auto" else {"device": device}
    app = import_module("isaaclab.app")
    stack = ExitStack()
    generation_3 = hasattr(app, "launch_simulation")
    if not generation_3:  # nothing else may be imported before the application runs
        launched = app.AppLauncher(headless=headless, **chosen)
        stack.callback(launched.app.close)
    import_module("isaaclab_tasks")
    name = resolve_isaac_task(task, gym.registry)
    cfg = import_module("isaaclab_tasks.utils").parse_env_cfg(name, num_envs=num_envs, **chosen)
    if generation_3:
        stack.enter_context(app.launch_simulation(cfg, {"headless": headless, **chosen}))
    # closing the application may end the process, so that it waits for the end
    atexit.register(stack.close)
    if seed is not None:
        cfg.seed = seed
    if final_obs and hasattr(cfg, "compute_final_obs"):
        cfg.compute_final_obs = True
    return IsaacLabVecEnv(gym.make(name, cfg=cfg), final_obs=final_obs, **settings)
