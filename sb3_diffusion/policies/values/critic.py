"""Action-value functions behind Stable-Baselines3's critic interface."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.names import choice
from sb3_diffusion.networks.critics import ScalarCritics, StandardizedCritics
from sb3_diffusion.networks.distributional_critics import CategoricalCritics, GaussianCritics
from sb3_diffusion.policies.features import ObservationModel
from sb3_diffusion.policies.values.precision import check_precision

CRITIC_HEADS: dict[str, type[ScalarCritics] | type[GaussianCritics] | type[CategoricalCritics]] = {
    "scalar": ScalarCritics,
    "standardized": StandardizedCritics,
    "gaussian": GaussianCritics,
    "categorical": CategoricalCritics,
}

REDUCTIONS = ("min", "mean")
"""What becomes of the values of several critics."""


def reduce_critics(values: th.Tensor, reduction: str = "min") -> th.Tensor:
    """
    :param values: Values by critic ``(n_critics, ...)``
    :param reduction: One of :data:`REDUCTIONS`
    :return: One value ``(...)``
    """
    return values.amin(0) if reduction == "min" else values.mean(0)


class ObservationCritic(ObservationModel):
    """
    Values actions at observations: a features extractor, and behind it an ensemble of stacked critics.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param head: One of :data:`CRITIC_HEADS`
    :param normalize_images: Whether to divide images by 255
    :param share_features_extractor: The extractor belongs to the actor and gets no gradient from here
    :param particle_precision: Number format in which many particles are valued, see
        :func:`~sb3_diffusion.policies.values.precision.reduced_precision`
    :param ensemble_kwargs: Arguments of the value networks behind the sizes of features and action
    """

    features_extractor: BaseFeaturesExtractor
    ensemble: Any  # one of CRITIC_HEADS

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        head: str = "scalar",
        normalize_images: bool = True,
        share_features_extractor: bool = False,
        particle_precision: str = "float32",
        **ensemble_kwargs: Any,
    ):
        choice("critic_head", head, CRITIC_HEADS)
        super().__init__(observation_space, action_space, features_extractor, normalize_images)
        self.ensemble = CRITIC_HEADS[head](features_extractor.features_dim, get_action_dim(action_space), **ensemble_kwargs)
        self.share_features_extractor = share_features_extractor
        self.particle_precision = check_precision(particle_precision)
        self._arguments = {"head": head, **ensemble_kwargs}

    @property
    def n_critics(self) -> int:
        """Number of critics."""
        return self.ensemble.n_critics  # type: ignore[no-any-return]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ("share_features_extractor", "particle_precision")
        own = {name: getattr(self, name) for name in names}
        return {**super()._get_constructor_parameters(), **own, **self._arguments}

    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """
        The observation's share of the first layer, computed once for all candidate actions.

        :param observations: Batch of observations
        :return: Context ``(n_critics, batch, hidden)``
        """
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            features = self.extract_features(observations, self.features_extractor)
        return self.ensemble.encode_state(features)

    def q(self, actions: th.Tensor, context: th.Tensor, t: th.Tensor | None = None) -> th.Tensor:
        """
        Expected values.

        :param actions: ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        :param context: Result of :meth:`encode`
        :param t: Diffusion times of the actions ``(batch, 1)`` for critics with a ``time_embedding``, ``None`` for the others
        :return: ``(n_critics, batch)`` or ``(n_critics, batch, n_candidates)``
        """
        if t is None:
            return self.ensemble.q(actions, context)  # type: ignore[no-any-return]
        return self.ensemble.q(actions, context, self.ensemble.encode_time(t))  # type: ignore[no-any-return]

    def value_and_gradient(
        self, actions: th.Tensor, context: th.Tensor, reduction: str = "min"
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Values reduced over the critics and their gradient with respect to the actions, for guidance; both are constants.

        :param actions: ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        :param context: Result of :meth:`encode`
        :param reduction: ``"min"`` or ``"mean"`` over the critics
        :return: Values ``(batch,)`` or ``(batch, n_candidates)``, and a gradient of the shape of ``actions``
        """
        return self.ensemble.value_and_gradient(actions, context, reduction)  # type: ignore[no-any-return]

    def forward(self, observations: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param observations: Batch of observations
        :param actions: Actions in [-1, 1], ``(batch, action_dim)``
        :return: One ``(batch, 1)`` tensor per critic
        """
        return tuple(self.q(actions, self.encode(observations)).unsqueeze(-1).unbind(0))
