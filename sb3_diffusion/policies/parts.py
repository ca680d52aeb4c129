"""What policies are made of: pieces and settings that diffusion, Gaussian and rollout policies have in common."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.names import choice
from sb3_diffusion.networks.backbones.mlp import MLP
from sb3_diffusion.networks.norms import LayerNorm
from sb3_diffusion.policies.features import ObservationModel

Module = TypeVar("Module", bound=BaseModel)


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
        return self(observation, deterministic)  # type: ignore[no-any-return]


class StateValue(ObservationModel):
    """
    Value of a state, without an action.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param net_arch: Widths of the hidden layers
    :param activation: Name or class
    :param layer_norm: Layer norms, see :class:`~sb3_diffusion.networks.backbones.mlp.MLP`
    :param input_norm: Whether a layer norm comes before the first layer
    :param dropout: Share of the hidden units that is dropped while the network is trained
    :param normalize_images: Whether to divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        net_arch: Sequence[int] = (256, 256),
        activation: str | Callable[[], nn.Module] = "relu",
        layer_norm: bool | str = False,
        input_norm: bool = False,
        dropout: float = 0.0,
        normalize_images: bool = True,
    ):
        super().__init__(observation_space, action_space, features_extractor, normalize_images)
        features_dim = features_extractor.features_dim
        self.norm = LayerNorm(features_dim) if input_norm else None
        self.mlp = MLP([features_dim], net_arch, 1, activation, layer_norm=layer_norm, dropout=dropout)
        settings = {"layer_norm": layer_norm, "input_norm": input_norm, "dropout": dropout}
        self._arguments = {"net_arch": net_arch, "activation": activation, **settings}

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: Batch of observations
        :return: Values ``(batch,)``
        """
        extractor: Any = self.features_extractor
        features = self.extract_features(observations, extractor)
        return self.mlp.single(features if self.norm is None else self.norm(features)).squeeze(-1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._arguments}


def frozen_copy(network: Module) -> Module:
    """
    :param network: A network
    :return: A copy that only follows: without gradients, and always in evaluation mode
    """
    copied = deepcopy(network)
    copied.requires_grad_(False)
    copied.set_training_mode(False)
    return copied


def own_parameters(network: nn.Module) -> list[nn.Parameter]:
    """
    :param network: A network of a policy
    :return: The parameters that its optimizer steps: all but those of an extractor that another network trains
    """
    shares = getattr(network, "share_features_extractor", False)
    shared = {id(parameter) for parameter in network.features_extractor.parameters()} if shares else set()  # type: ignore[union-attr]
    return [parameter for parameter in network.parameters() if id(parameter) not in shared]


def optimizer_settings(
    optimizer_class: type[th.optim.Optimizer] | str | dict[str, Any], optimizer_kwargs: dict[str, Any] | None, key: str
) -> tuple[type[th.optim.Optimizer], dict[str, Any]]:
    """
    :param optimizer_class: Optimizer class, or the name of one in ``torch.optim``, or ``dict(pi=..., qf=...)``
    :param optimizer_kwargs: Its keyword arguments, or ``dict(pi=..., qf=...)``
    :param key: ``"pi"`` or ``"qf"``
    :return: The class and its arguments of one network; Adam as one kernel for all parameters
    :raises ValueError: If there is no such optimizer
    """
    chosen = per_network(optimizer_class, key, th.optim.Adam)
    if isinstance(chosen, str):
        classes = {
            n: cls for n, cls in vars(th.optim).items() if isinstance(cls, type) and issubclass(cls, th.optim.Optimizer)
        }
        chosen = classes[choice("optimizer_class", chosen, sorted(classes))]
    options = dict(optimizer_kwargs or {})
    if options.keys() & {"pi", "qf"}:  # no optimizer has arguments of these names
        options = dict(per_network(options, key, {}))
    if chosen in (th.optim.Adam, th.optim.AdamW) and not options.get("foreach"):
        options = {"fused": True, **options}
    return chosen, options


def per_network(value: Any, key: str, default: Any) -> Any:
    """
    :param value: An argument that is given for all networks, or as ``dict(pi=..., qf=...)``
    :param key: ``"pi"`` or ``"qf"``
    :param default: What it is where nothing is given
    :return: One network's entry
    :raises ValueError: If there is another key
    """
    if isinstance(value, dict):
        unknown = set(value) - {"pi", "qf"}
        if unknown:
            raise ValueError(f"Unknown key {sorted(unknown)[0]!r} in policy_kwargs; use dict(pi=..., qf=...).")
        value = value.get(key)
    return default if value is None else value


@th.no_grad()
def forget_moments(optimizer: th.optim.Optimizer) -> None:
    """
    Let an optimizer begin anew, in the tensors that there are.

    :param optimizer: An optimizer whose state is of tensors
    """
    for moments in optimizer.state.values():
        for value in moments.values():
            value.zero_()


def train_unless_frozen(module: nn.Module) -> None:
    """
    ``module.train()`` for what is trained. What is frozen, every parameter of it by ``requires_grad_(False)``, gets into
    evaluation mode: training mode would go on moving the running statistics of its normalisations.

    :param module: A network
    """
    trained = {parameter.requires_grad for parameter in module.parameters()}
    if len(trained) < 2 or type(module).train is not nn.Module.train:  # or somebody's own rule
        module.train(trained != {False})
        return
    module.training = True
    for child in module.children():
        train_unless_frozen(child)
