"""The networks behind actors and critics, and their names."""

from sb3_diffusion.networks.backbones.names import BACKBONES, DENOISER_BACKBONES, dropout_argument, resolve_backbone

__all__ = ["BACKBONES", "DENOISER_BACKBONES", "dropout_argument", "resolve_backbone"]
