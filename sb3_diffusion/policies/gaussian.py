"""``GaussianPolicy``: an actor that draws its actions from a Gaussian, or has one action per state, with critics."""

from collections.abc import Callable
from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from typing_extensions import Unpack, override

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.numeric import optional, real
from sb3_diffusion.policies.actor_critic import ActorCritic, ActorCriticArguments, all_arguments
from sb3_diffusion.policies.actors.gaussian import GaussianActor
from sb3_diffusion.policies.parts import per_network, widths_of_both


class GaussianPolicy(ActorCritic, hands_on=True):
    """
    Policy of the off-policy algorithms that have no diffusion: a Gaussian actor with an ensemble of critics.

    The one deterministic action of a Gaussian is its mean, whatever ``evaluation_noise``; where critics choose among several,
    ``"fresh"`` draws these anew. An actor without a density has nothing to draw.

    :param observation_space: Observation space (Box, image, Dict, ...)
    :param action_space: Action space, a Box of any shape with finite bounds
    :param lr_schedule: Learning rate schedule; the algorithm sets the rates of actor and critics before every update
    :param net_arch: Hidden layers: a list for both networks or ``dict(pi=[...], qf=[...])``; without any, a network is linear.
        Default: [256, 256] for both
    :param activation_fn: Activation class, name (such as ``"mish"``) or function without arguments that makes one, or
        ``dict(pi=..., qf=...)``. Default: ReLU for both
    :param backbone: ``"mlp"``, ``"residual"``, ``"simba"`` or ``"bronet"``, or ``dict(pi=..., qf=...)``
    :param layer_norm: Whether the backbones normalise their hidden layers, or ``dict(pi=..., qf=...)``
    :param squash: What keeps actions in the box: ``"mean"`` a tanh of the mean (samples are clipped), ``"action"`` a tanh of
        the samples, ``"none"`` the clipping alone
    :param state_dependent_std: Whether the network predicts the standard deviation; otherwise it is a learned vector that
        starts at one
    :param log_std_bounds: Smallest and largest logarithm of the standard deviation
    :param init_std: Standard deviation at the beginning, if it is a learned vector
    :param output_gain: Gain of the initialisation of the actor's last layer; ``None`` for the square root of two
    :param dropout: Share of the actor's hidden units that is dropped while it is trained
    :param deterministic_actor: Whether the actor has one action per state, ``tanh`` of its network, instead of a density
    :param kwargs: See :class:`~sb3_diffusion.policies.actor_critic.ActorCritic`
    """

    general_name: ClassVar[str] = "GaussianPolicy"
    actor_class: ClassVar[type[GaussianActor]] = GaussianActor
    actor: GaussianActor
    actor_target: GaussianActor | None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: Callable[[], nn.Module] | str | dict[str, Any] | None = None,
        *,
        backbone: str | dict[str, str] = "mlp",
        layer_norm: bool | dict[str, bool] = False,
        squash: str = "mean",
        state_dependent_std: bool = False,
        log_std_bounds: tuple[float, float] = (-5.0, 2.0),
        init_std: float = 1.0,
        output_gain: float | None = None,
        dropout: float = 0.0,
        deterministic_actor: bool = False,
        **kwargs: Unpack[ActorCriticArguments],
    ):
        self.constructor_arguments = all_arguments(GaussianPolicy, locals())
        actor_arguments: dict[str, Any] = {
            "deterministic": deterministic_actor,
            "net_arch": widths_of_both(net_arch, [256, 256])["pi"],
            "activation": per_network("activation_fn", activation_fn, "pi", "relu"),
            "backbone": per_network("backbone", backbone, "pi", "mlp"),
            "layer_norm": per_network("layer_norm", layer_norm, "pi", False),
            "dropout": real("dropout", dropout, 0, below=1, remedy="0 drops nothing"),
        }
        if not deterministic_actor:
            actor_arguments |= {
                "squash": squash,
                "state_dependent_std": state_dependent_std,
                "log_std_bounds": tuple(log_std_bounds),
                "init_std": real("init_std", init_std, above=0),
                "output_gain": optional(real, "output_gain", output_gain, low=0),
            }
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            actor_arguments,
            0,
            net_arch,
            activation_fn,
            backbone,
            layer_norm,
            **kwargs,
        )

    @property
    @override
    def draws_when_evaluated(self) -> bool:
        return self.n_action_candidates > 1 and not self.constructor_arguments["deterministic_actor"]

    @override
    def fresh_draws(self) -> Randomness:
        return self.randomness if self.draws_when_evaluated else self.fixed_draws()


class GaussianMlpPolicy(GaussianPolicy):
    """:class:`GaussianPolicy` that flattens observations, images too."""

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = FlattenExtractor


class GaussianCnnPolicy(GaussianPolicy):
    """
    :class:`GaussianPolicy` with a ``NatureCNN``. Images that are not ``uint8`` in [0, 255] need ``normalize_images=False`` and
    have their channels first.
    """

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = NatureCNN


class GaussianMultiInputPolicy(GaussianPolicy):
    """:class:`GaussianPolicy` with a ``CombinedExtractor``, for Dict observations."""

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = CombinedExtractor


GAUSSIAN_POLICIES: dict[str, type[GaussianPolicy]] = {
    "GaussianPolicy": GaussianPolicy,
    "MlpPolicy": GaussianMlpPolicy,
    "CnnPolicy": GaussianCnnPolicy,
    "MultiInputPolicy": GaussianMultiInputPolicy,
}
"""What the first argument of an algorithm with a Gaussian policy may be called."""
