"""The networks behind actors and critics, and their names."""

from sb3_diffusion.networks.backbones.names import BACKBONES, dropout_argument, resolve_backbone

__all__ = ["BACKBONES", "dropout_argument", "resolve_backbone"]
