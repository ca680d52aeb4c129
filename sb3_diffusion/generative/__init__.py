"""From noise to actions: schedules, diffusion and flow processes, and the samplers that run them. Knows nothing of RL."""

from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.controlled import ControlledDiffusion, PathSample
from sb3_diffusion.generative.coupled_flow import CoupledFlow
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.edm import EDM
from sb3_diffusion.generative.flow import FlowMatching, FlowSampler, MeanFlow
from sb3_diffusion.generative.langevin import Langevin, energy_gradient
from sb3_diffusion.generative.likelihood import LikelihoodEstimator
from sb3_diffusion.generative.process import ChainSampler, Denoise, GenerativeProcess
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.generative.solvers.sampler import Sampler

__all__ = [
    "EDM",
    "ChainSampler",
    "ContinuousDiffusion",
    "ControlledDiffusion",
    "CoupledFlow",
    "Denoise",
    "DiscreteDiffusion",
    "FlowMatching",
    "FlowSampler",
    "GenerativeProcess",
    "Langevin",
    "LikelihoodEstimator",
    "MeanFlow",
    "PathSample",
    "Randomness",
    "RecordedDraws",
    "Sampler",
    "energy_gradient",
]
