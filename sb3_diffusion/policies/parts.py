"""What policies do with their networks, whatever these are: optimizers, settings per network, frozen copies and modes."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.policies import BaseModel
from torch import nn

from sb3_diffusion.names import choice
from sb3_diffusion.numeric import widths

Module = TypeVar("Module", bound=BaseModel)


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
    :return: The parameters that its optimizer steps: all but those of an extractor that another network trains, and of a copy
        that is kept as it is
    """
    shares = getattr(network, "share_features_extractor", False)
    shared = {id(parameter) for parameter in network.features_extractor.parameters()} if shares else set()  # type: ignore[union-attr]
    if (clone := getattr(network, "clone", None)) is not None:
        shared |= {id(parameter) for parameter in clone.parameters()}
    return [parameter for parameter in network.parameters() if id(parameter) not in shared]


def widths_of_both(net_arch: Any, default: list[int]) -> dict[str, list[int]]:
    """
    :param net_arch: A list of widths for both kinds of networks, or a dictionary of such lists
    :param default: Widths if it is ``None``
    :return: ``"pi"`` and ``"qf"`` -> widths
    :raises TypeError: If it is neither
    :raises ValueError: If it is for one kind only, or for something else
    """
    if net_arch is None:
        return {"pi": default, "qf": default}
    if not isinstance(net_arch, Mapping):
        return dict.fromkeys(("pi", "qf"), widths("net_arch", net_arch))
    if set(net_arch) != {"pi", "qf"}:
        raise ValueError(f"net_arch={net_arch!r} must be a list of widths, or one for each: dict(pi=[...], qf=[...]).")
    return {kind: widths(f"net_arch[{kind!r}]", net_arch[kind]) for kind in ("pi", "qf")}


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
    chosen = per_network("optimizer_class", optimizer_class, key, th.optim.Adam)
    if isinstance(chosen, str):
        classes = {
            n: cls for n, cls in vars(th.optim).items() if isinstance(cls, type) and issubclass(cls, th.optim.Optimizer)
        }
        chosen = classes[choice("optimizer_class", chosen, sorted(classes))]
    options = dict(optimizer_kwargs or {})
    if options.keys() & {"pi", "qf"}:  # no optimizer has arguments of these names
        options = dict(per_network("optimizer_kwargs", options, key, {}))
    if chosen in (th.optim.Adam, th.optim.AdamW) and not options.get("foreach"):
        options = {"fused": True, **options}
    return chosen, options


def per_network(name: str, value: Any, key: str, default: Any) -> Any:
    """
    :param name: Name of an argument
    :param value: What was passed, for all networks or as ``dict(pi=..., qf=...)``
    :param key: ``"pi"`` or ``"qf"``
    :param default: What it is where nothing is given
    :return: One network's entry
    :raises ValueError: If there is another key
    """
    if isinstance(value, dict):
        unknown = set(value) - {"pi", "qf"}
        if unknown:
            raise ValueError(f"{name}={value!r} has an unknown key {min(unknown, key=str)!r}; use dict(pi=..., qf=...).")
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


def in_float32(actions: th.Tensor) -> th.Tensor:
    """
    :param actions: Actions, coarser ones where a network made them under autocast
    :return: The same in the format that NumPy and environments know
    """
    return actions if actions.dtype is th.float32 else actions.float()


def is_frozen(module: nn.Module) -> bool:
    """
    :param module: Any module
    :return: Whether it has parameters, all of which the user froze by ``requires_grad_(False)``
    """
    return {parameter.requires_grad for parameter in module.parameters()} == {False}


@th.no_grad()
def begin_as(network: nn.Module, source: nn.Module) -> None:
    """
    Let a network begin as a copy of another one. What the user froze stays as it is, statistics of frozen layers too.

    :param network: A network that is trained
    :param source: One of the same structure
    """
    if is_frozen(network):
        return
    for own, other in zip(network.parameters(recurse=False), source.parameters(recurse=False), strict=True):
        if own.requires_grad:
            own.copy_(other)
    for measured, others in zip(network.buffers(recurse=False), source.buffers(recurse=False), strict=True):
        measured.copy_(others)
    for child, counterpart in zip(network.children(), source.children(), strict=True):
        begin_as(child, counterpart)


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
