"""Environments and wrappers; simulators are imported when an environment is made, never before."""

from sb3_diffusion.envs.dmc import DMC_TASKS, make_dmc, register_dmc, wrap_dmc
from sb3_diffusion.envs.mujoco_log import quiet_mujoco
from sb3_diffusion.envs.wrappers import ActionRepeat, Float32Action, Float32Observation

__all__ = [
    "DMC_TASKS",
    "ActionRepeat",
    "Float32Action",
    "Float32Observation",
    "make_dmc",
    "quiet_mujoco",
    "register_dmc",
    "wrap_dmc",
]
