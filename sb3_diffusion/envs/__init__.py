"""Environments and wrappers; simulators are imported when an environment is made, never before."""

from sb3_diffusion.data.stored.tasks import register_data_task
from sb3_diffusion.envs.bandits import BanditEnv, boltzmann_density, boltzmann_entropy, grid_axis
from sb3_diffusion.envs.dmc import DMC_TASKS, make_dmc, register_dmc, wrap_dmc
from sb3_diffusion.envs.mujoco_log import quiet_mujoco
from sb3_diffusion.envs.toys import TOYS, ToyDataset, get_toy, make_toy, register_toys, toy_dataset
from sb3_diffusion.envs.wrappers import ActionRepeat, Float32Action, Float32Observation

__all__ = [
    "DMC_TASKS",
    "TOYS",
    "ActionRepeat",
    "BanditEnv",
    "Float32Action",
    "Float32Observation",
    "ToyDataset",
    "boltzmann_density",
    "boltzmann_entropy",
    "get_toy",
    "grid_axis",
    "make_dmc",
    "make_toy",
    "quiet_mujoco",
    "register_data_task",
    "register_dmc",
    "register_toys",
    "toy_dataset",
    "wrap_dmc",
]

register_toys()
