"""The backbones by name."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType

from sb3_diffusion.networks.backbones.base import Backbone
from sb3_diffusion.networks.backbones.bronet import BroNet
from sb3_diffusion.networks.backbones.mlp import MLP, ResidualMLP
from sb3_diffusion.networks.backbones.simba import SimBa
from sb3_diffusion.networks.backbones.unet import ActionUNet

BACKBONES: dict[str, type[Backbone]] = {"mlp": MLP, "residual": ResidualMLP, "simba": SimBa, "bronet": BroNet}


DENOISER_BACKBONES: dict[str, type[Backbone]] = {**BACKBONES, "unet": ActionUNet}
"""Those of denoisers, whose inputs are a noisy action, its time and a state."""


def resolve_backbone(
    spec: str | type[Backbone], known: Mapping[str, type[Backbone]] = MappingProxyType(BACKBONES)
) -> Callable[..., Backbone]:
    """
    Find a backbone class.

    :param spec: A name (mlp, residual, simba, bronet) or a subclass of
        :class:`~sb3_diffusion.networks.backbones.base.Backbone`
    :param known: The backbones that there are by name
    :return: The class, to be built as ``cls(in_dims, net_arch, output_dim, activation, n_members, layer_norm, output_gain)``
    """
    if isinstance(spec, str):
        if spec.lower() not in known:
            raise ValueError(f"backbone={spec!r} is unknown; choose one of {', '.join(known)} or pass a Backbone class.")
        return known[spec.lower()]
    if isinstance(spec, type) and issubclass(spec, Backbone):
        return spec
    raise TypeError(f"backbone={spec!r} must be a name or a subclass of Backbone, not {type(spec).__name__}.")


def dropout_argument(build: Callable[..., Backbone], dropout: float) -> dict[str, float]:
    """
    :param build: What :func:`resolve_backbone` returned
    :param dropout: Share of the hidden units that is dropped while the network is trained
    :return: The argument of the backbone, nothing where nothing is dropped
    :raises ValueError: If the backbone drops nothing
    """
    if not dropout:
        return {}
    if "dropout" not in inspect.signature(build).parameters:
        name = getattr(build, "__name__", build)
        raise ValueError(f"dropout={dropout!r} is for the backbones 'mlp' and 'residual'; {name} has none, leave it out.")
    return {"dropout": dropout}
