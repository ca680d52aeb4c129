"""What every actor answers to, whatever it is made of."""

from abc import abstractmethod

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.policies.features import ObservationModel
from sb3_diffusion.policies.parts import in_float32


class Actor(ObservationModel, BasePolicy):
    """What every actor answers to, whatever it is made of. Arguments: see its bases."""

    action_dim: int

    @abstractmethod
    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """
        Everything of the actor that depends on the observation alone; computed once, used for all its actions.

        :param observations: Batch of observations
        :return: Context ``(batch, ...)``
        """

    @abstractmethod
    def sample(
        self,
        context: th.Tensor,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        clip_output: bool = True,
    ) -> th.Tensor:
        """
        Draw actions, differentiable unless called under ``no_grad``.

        :param context: Result of :meth:`encode`
        :param randomness: See :meth:`act`
        :param label: See :meth:`act`
        :param n_candidates: See :meth:`act`
        :param clip_output: See :meth:`act`
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """

    def act(
        self,
        observations: PyTorchObs,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        evaluating: bool = False,
        clip_output: bool = True,
    ) -> th.Tensor:
        """
        Actions for observations that nothing else needs encoded.

        :param observations: Batch of observations
        :param randomness: Source of the draws, the first of which, of the shape of the actions, is ``"<label>.x_T"``
        :param label: Prefix of the names of the draws
        :param n_candidates: Independent samples per row, ``None`` for one without a candidate axis
        :param evaluating: Whether the action is a deterministic one, for which an actor may take other steps
        :param clip_output: Clamp the result to [-1, 1]
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """
        return self.sample(self.encode(observations), randomness, label, n_candidates, clip_output)

    def forward(self, observations: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        """
        :param observations: Batch of observations
        :param deterministic: Whether every draw is zero
        :return: Actions in [-1, 1], ``(batch, action_dim)``
        """
        if not deterministic:
            return self.act(observations, Randomness(), "sample")
        zero = th.zeros((), device=self.device)
        silence = RecordedDraws({"sample.x_T": zero, "sample.step_noise": zero})
        return self.act(observations, silence, "sample", evaluating=True)

    def _sample_shape(self, batch: int, n_candidates: int | None) -> tuple[int, ...]:
        return (batch, self.action_dim) if n_candidates is None else (batch, n_candidates, self.action_dim)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return in_float32(self(observation, deterministic))
