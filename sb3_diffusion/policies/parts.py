"""What policies are made of: pieces and settings that diffusion, Gaussian and rollout policies have in common."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_diffusion.names import choice
from sb3_diffusion.networks.mlp import MLP
from sb3_diffusion.policies.features import ObservationModel

Module = TypeVar("Module", bound=BaseModel)


class StateValue(ObservationModel):
    """
    Value of a state, without an action.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param net_arch: Widths of the hidden layers
    :param activation: Name or class
    :param layer_norm: Layer norms, see :class:`~sb3_diffusion.networks.mlp.MLP`
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
        normalize_images: bool = True,
    ):
        super().__init__(observation_space, action_space, features_extractor, normalize_images)
        self.mlp = MLP([features_extractor.features_dim], net_arch, 1, activation, layer_norm=layer_norm)
        self._arguments = {"net_arch": net_arch, "activation": activation, "layer_norm": layer_norm}

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: Batch of observations
        :return: Values ``(batch,)``
        """
        extractor: Any = self.features_extractor
        return self.mlp.full(self.extract_features(observations, extractor)).squeeze(-1)

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
    optimizer_class: type[th.optim.Optimizer] | str, optimizer_kwargs: dict[str, Any] | None
) -> tuple[type[th.optim.Optimizer], dict[str, Any]]:
    """
    :param optimizer_class: Optimizer class, or the name of one in ``torch.optim``
    :param optimizer_kwargs: Its keyword arguments
    :return: The class and its arguments; Adam as one kernel for all parameters
    :raises ValueError: If there is no such optimizer
    """
    if isinstance(optimizer_class, str):
        classes = {
            n: cls for n, cls in vars(th.optim).items() if isinstance(cls, type) and issubclass(cls, th.optim.Optimizer)
        }
        optimizer_class = classes[choice("optimizer_class", optimizer_class, sorted(classes))]
    options = dict(optimizer_kwargs or {})
    if optimizer_class in (th.optim.Adam, th.optim.AdamW) and not options.get("foreach"):
        options = {"fused": True, **options}
    return optimizer_class, options


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
