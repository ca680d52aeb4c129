"""Many environments at once, in tensors: the contract, our own tasks, and adapters to simulators."""

from sb3_diffusion.envs.tensor.adapters.envpool import EnvpoolVecEnv, make_envpool
from sb3_diffusion.envs.tensor.adapters.isaaclab import IsaacLabVecEnv
from sb3_diffusion.envs.tensor.adapters.isaaclab_launch import make_isaaclab
from sb3_diffusion.envs.tensor.adapters.isaaclab_names import resolve_isaac_task
from sb3_diffusion.envs.tensor.adapters.mjlab import MjlabVecEnv, make_mjlab
from sb3_diffusion.envs.tensor.adapters.playground import PlaygroundVecEnv, make_playground
from sb3_diffusion.envs.tensor.adapters.vec_env import VecEnvAdapter, as_tensor_env
from sb3_diffusion.envs.tensor.checker import check_tensor_env
from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.envs.tensor.episodes import EpisodeStatistics, EpisodeSummary
from sb3_diffusion.envs.tensor.observations import Observation
from sb3_diffusion.envs.tensor.registry import is_tensor_env, make_tensor_env, register_tensor_env, tensor_env_ids
from sb3_diffusion.envs.tensor.step import TensorStep
from sb3_diffusion.envs.tensor.torch_env import TorchVecEnv

__all__ = [
    "EnvpoolVecEnv",
    "EpisodeStatistics",
    "EpisodeSummary",
    "IsaacLabVecEnv",
    "MjlabVecEnv",
    "Observation",
    "PlaygroundVecEnv",
    "TensorStep",
    "TensorVecEnv",
    "TorchVecEnv",
    "VecEnvAdapter",
    "as_tensor_env",
    "check_tensor_env",
    "is_tensor_env",
    "make_envpool",
    "make_isaaclab",
    "make_mjlab",
    "make_playground",
    "make_tensor_env",
    "register_tensor_env",
    "resolve_isaac_task",
    "tensor_env_ids",
]
