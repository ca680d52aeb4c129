"""Networks: backbones, time embeddings, denoisers, critics and Gaussian actors. They know nothing of any algorithm."""

from sb3_diffusion.networks.activations import Mish, resolve_activation
from sb3_diffusion.networks.backbones import resolve_backbone
from sb3_diffusion.networks.backbones.base import Backbone
from sb3_diffusion.networks.backbones.bronet import BroNet
from sb3_diffusion.networks.backbones.mlp import MLP, ResidualMLP
from sb3_diffusion.networks.backbones.simba import SimBa
from sb3_diffusion.networks.critics import ScalarCritics, StackedCritics
from sb3_diffusion.networks.denoiser import Denoiser
from sb3_diffusion.networks.distributional_critics import CategoricalCritics, GaussianCritics
from sb3_diffusion.networks.embeddings import (
    FourierEmbedding,
    OctaveEmbedding,
    PositionalEmbedding,
    RawTime,
    SinusoidalEmbedding,
    TimeEmbedding,
    resolve_time_embedding,
)
from sb3_diffusion.networks.gaussian import DeterministicActor, GaussianActor
from sb3_diffusion.networks.layers import Linear, SplitLinear
from sb3_diffusion.networks.norms import BatchRenorm, LayerNorm

__all__ = [
    "MLP",
    "Backbone",
    "BatchRenorm",
    "BroNet",
    "CategoricalCritics",
    "Denoiser",
    "DeterministicActor",
    "FourierEmbedding",
    "GaussianActor",
    "GaussianCritics",
    "LayerNorm",
    "Linear",
    "Mish",
    "OctaveEmbedding",
    "PositionalEmbedding",
    "RawTime",
    "ResidualMLP",
    "ScalarCritics",
    "SimBa",
    "SinusoidalEmbedding",
    "SplitLinear",
    "StackedCritics",
    "TimeEmbedding",
    "resolve_activation",
    "resolve_backbone",
    "resolve_time_embedding",
]
