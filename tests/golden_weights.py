"""
Copying weights and gradients between the networks and the golden files.

The files hold weights as (out, in), one folder per layer (``trunk/dense0/weight``) and one folder per ensemble member. The
networks hold (in, out), stack the members and split the first layer into one weight per input. A ``Slot`` pairs the two.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_diffusion.networks.backbones.base import Backbone
from sb3_diffusion.networks.backbones.bronet import BroBlock, BroNet
from sb3_diffusion.networks.backbones.mlp import MLP, ResidualBlock, ResidualMLP
from sb3_diffusion.networks.backbones.simba import SimBa
from sb3_diffusion.networks.critics import StackedCritics
from sb3_diffusion.networks.denoiser import Denoiser
from sb3_diffusion.networks.embeddings import FourierEmbedding, TimeNetwork
from sb3_diffusion.networks.gaussian import DeterministicActor, GaussianActor
from sb3_diffusion.networks.layers import Linear, SplitLinear
from sb3_diffusion.networks.norms import LayerNorm

Tensors = Mapping[str, th.Tensor]


class Slot(NamedTuple):
    """
    One array of a golden file and the parameters that hold it.

    :param path: Path of the array
    :param parameters: One parameter, or the pieces of a split first layer in the order of their concatenation
    :param member: Index along the leading axis of stacked parameters, None for a single network
    """

    path: str
    parameters: tuple[nn.Parameter, ...]
    member: int | None

    def pieces(self, gradients: bool) -> list[th.Tensor]:
        """The parameters, or their gradients (zero where there is none), of this member."""
        tensors = []
        for parameter in self.parameters:
            tensor = parameter.detach()
            if gradients:
                tensor = th.zeros_like(tensor) if parameter.grad is None else parameter.grad
            tensors.append(tensor if self.member is None else tensor[self.member])
        return tensors

    def read(self, gradients: bool = False) -> th.Tensor:
        """What the parameters (or their gradients) hold, in the layout of the file."""
        pieces = self.pieces(gradients)
        if _is_matrix(self.path):
            return th.cat(pieces).t().clone()
        vector = pieces[0].flatten().clone()
        # the frequencies of the files are a column
        return vector.unsqueeze(-1) if self.path.endswith("time_embed/freq") else vector

    def write(self, array: th.Tensor) -> None:
        """Copy an array of the file into the parameters."""
        assert array.shape == self.read().shape, f"{self.path}: {tuple(array.shape)} instead of {tuple(self.read().shape)}"
        pieces = self.pieces(gradients=False)
        if not _is_matrix(self.path):
            pieces[0].copy_(array.reshape(pieces[0].shape))
            return
        for piece, part in zip(pieces, array.t().split([piece.shape[0] for piece in pieces]), strict=True):
            piece.copy_(part)


def _is_matrix(path: str) -> bool:
    return path.endswith("weight") and "norm" not in path.split("/")[-2]


def _layer(path: str, layer: nn.Module, member: int | None) -> Iterator[Slot]:
    if isinstance(layer, SplitLinear):
        weights = tuple(getattr(layer, f"weight_{i}") for i in range(len(layer.in_dims)))
        bias = layer.bias
    else:
        assert isinstance(layer, Linear | LayerNorm)
        weights, bias = (layer.weight,), layer.bias
    yield Slot(f"{path}weight", weights, member)
    yield Slot(f"{path}bias", (bias,), member)


def _mlp(net: MLP) -> Iterator[tuple[str, nn.Module]]:
    layers = [net.first, *net.hidden, *([] if net.output is None else [net.output])]
    yield from ((f"dense{i}/", layer) for i, layer in enumerate(layers))
    yield from ((f"norm{i}/", norm) for i, norm in enumerate(net.norms))


def _blocks(net: ResidualMLP | SimBa | BroNet) -> Iterator[tuple[str, nn.Module]]:
    for i, block in enumerate(net.blocks):
        names: dict[str, nn.Module | None]
        if isinstance(block, ResidualBlock):
            names = {"norm0": block.norm, "dense0": block.expand, "dense1": block.contract, "dense2": block.shortcut}
        else:
            assert isinstance(block, BroBlock)
            names = {"dense0": block.inner, "norm0": block.inner_norm, "dense1": block.outer, "norm1": block.outer_norm}
        yield from ((f"block{i}/{name}/", layer) for name, layer in names.items() if layer is not None)


def _residual(net: ResidualMLP | SimBa | BroNet) -> Iterator[tuple[str, nn.Module]]:
    yield "dense0/", net.first
    yield from _blocks(net)
    if not isinstance(net, ResidualMLP):
        yield "norm0/", net.norm
    if net.output is not None:
        yield "dense1/", net.output


def backbone_slots(net: Backbone, prefix: str = "", member: int | None = None, head: str | None = None) -> Iterator[Slot]:
    """
    :param net: A backbone
    :param prefix: Folder of its arrays, with a trailing slash
    :param member: Member of a stacked backbone
    :param head: Folder of the output layer, with a trailing slash, where it is not the last ``dense`` of ``prefix``
    """
    assert isinstance(net, MLP | ResidualMLP | SimBa | BroNet)
    layers = _mlp(net) if isinstance(net, MLP) else _residual(net)
    for name, layer in layers:
        folder = head if head is not None and layer is net.output else prefix + name
        yield from _layer(folder, layer, member)


def _time_slots(net: TimeNetwork, prefix: str = "", member: int | None = None) -> Iterator[Slot]:
    if isinstance(net.embedding, FourierEmbedding):
        yield Slot(f"{prefix}time_embed/freq", (net.embedding.frequencies,), None)
    if net.mlp is not None:
        yield from backbone_slots(net.mlp, f"{prefix}time_mlp/", member)


def denoiser_slots(denoiser: Denoiser) -> list[Slot]:
    """All arrays of a noise or velocity network."""
    slots = list(_time_slots(denoiser.time_net))
    if denoiser.state_net is not None:
        slots += backbone_slots(denoiser.state_net, "cond_mlp/")
    return slots + list(backbone_slots(denoiser.trunk, "trunk/"))


def critic_slots(critics: StackedCritics, flat: bool = False) -> list[Slot]:
    """
    All arrays of an ensemble of critics.

    :param critics: The ensemble
    :param flat: Whether the files count the output layer as the last ``dense`` and have no ``trunk`` folder
    """
    slots: list[Slot] = []
    for member in range(critics.n_critics):
        if critics.time_net is not None:
            slots += _time_slots(critics.time_net, f"{member}/", member)
        trunk, head = (f"{member}/", None) if flat else (f"{member}/trunk/", f"{member}/head/")
        slots += backbone_slots(critics.trunk, trunk, member, head)
    return slots


def actor_slots(actor: DeterministicActor | GaussianActor, flat: bool = False) -> list[Slot]:
    """All arrays of a deterministic or Gaussian actor; ``flat`` as in :func:`critic_slots`."""
    slots = list(backbone_slots(actor.trunk, "" if flat else "trunk/", None, None if flat else "head/"))
    if isinstance(actor, GaussianActor) and actor.log_std is not None:
        slots.append(Slot("logstd", (actor.log_std,), None))
    return slots


def load_slots(slots: list[Slot], tensors: Tensors) -> None:
    """Copy arrays into the parameters; both sides have to name the same arrays."""
    assert {slot.path for slot in slots} == set(tensors), sorted({slot.path for slot in slots} ^ set(tensors))
    for slot in slots:
        slot.write(tensors[slot.path])


def read_slots(slots: list[Slot], gradients: bool = False) -> dict[str, th.Tensor]:
    """The parameters, or their gradients, by the path of the array they correspond to."""
    return {slot.path: slot.read(gradients) for slot in slots}


def load_denoiser(denoiser: Denoiser, tensors: Tensors) -> None:
    """Copy ``{"time_mlp/dense0/weight": ...}`` into a denoiser."""
    load_slots(denoiser_slots(denoiser), tensors)


def denoiser_weights(denoiser: Denoiser) -> dict[str, th.Tensor]:
    """The weights of a denoiser by golden path."""
    return read_slots(denoiser_slots(denoiser))


def denoiser_gradients(denoiser: Denoiser) -> dict[str, th.Tensor]:
    """The gradients of a denoiser by golden path."""
    return read_slots(denoiser_slots(denoiser), gradients=True)


def is_flat(tensors: Tensors) -> bool:
    """Whether critic arrays have no ``trunk`` and ``head`` folders."""
    return not any("head/" in path for path in tensors)


def with_members(tensors: Tensors) -> dict[str, th.Tensor]:
    """Arrays of a single critic, named like those of an ensemble of one."""
    return {path if path[0].isdigit() else f"0/{path}": tensor for path, tensor in tensors.items()}


def load_critics(critics: StackedCritics, tensors: Tensors) -> None:
    """Copy ``{"0/trunk/dense0/weight": ..., "0/head/weight": ...}`` into an ensemble; flat files are recognised."""
    tensors = with_members(tensors)
    load_slots(critic_slots(critics, is_flat(tensors)), tensors)


def critic_weights(critics: StackedCritics, flat: bool = False) -> dict[str, th.Tensor]:
    """The weights of an ensemble by golden path."""
    return read_slots(critic_slots(critics, flat))


def critic_gradients(critics: StackedCritics, flat: bool = False) -> dict[str, th.Tensor]:
    """The gradients of an ensemble by golden path."""
    return read_slots(critic_slots(critics, flat), gradients=True)
