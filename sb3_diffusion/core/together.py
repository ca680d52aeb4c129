"""On-policy trainings in several processes, each with environments of its own, that have one policy."""

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from typing_extensions import override

from sb3_diffusion.core.algorithm import DiffusionAlgorithm
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.processes import average, n_processes, rank, share_weights

_SEEDS_APART = 100_003
"""Between the seeds of two processes, more than there are environments in one."""


class TrainsTogether(DiffusionAlgorithm):
    """
    Begins with the weights of the first process, and averages gradients; a base class of
    :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`.
    """

    @override
    def limit_gradients(self, part: Part) -> None:
        average(parameter.grad for parameter in part.parameters if parameter.grad is not None)
        super().limit_gradients(part)

    @override
    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed everything. Processes that train together draw different numbers, and their environments begin differently.

        :param seed: Seed of the first process
        """
        super().set_random_seed(None if seed is None else (seed + rank() * _SEEDS_APART) % 2**32)

    @override
    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if n_processes() > 1:
            share_weights(self.policy)
        if rank() > 0:  # one process writes and evaluates
            self.set_logger(Logger(folder=None, output_formats=[]))
            self.verbose = 0
            callback, progress_bar = None, False
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
