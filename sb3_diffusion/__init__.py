"""Reinforcement learning with diffusion and flow policies for users of Stable-Baselines3."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_diffusion.taxonomy import TAXONOMY, available_methods

if TYPE_CHECKING:  # at run time the names come from the taxonomy and from _MODULES, see __getattr__
    from sb3_diffusion.checkpoints.agents import load_agent as load_agent
    from sb3_diffusion.checkpoints.agents import load_normalization as load_normalization
    from sb3_diffusion.checkpoints.agents import save_agent as save_agent
    from sb3_diffusion.data.replay import TensorDictReplayBuffer as TensorDictReplayBuffer
    from sb3_diffusion.data.replay import TensorNStepReplayBuffer as TensorNStepReplayBuffer
    from sb3_diffusion.data.replay import TensorReplayBuffer as TensorReplayBuffer
    from sb3_diffusion.policies.diffusion import DiffusionPolicy as DiffusionPolicy
    from sb3_diffusion.q_guidance.dps import DPS as DPS
    from sb3_diffusion.q_guidance.idem import iDEM as iDEM
    from sb3_diffusion.q_guidance.qsm import QSM as QSM
    from sb3_diffusion.reparameterization.dacer import DACER as DACER
    from sb3_diffusion.reparameterization.dacerv2 import DACERv2 as DACERv2
    from sb3_diffusion.reparameterization.dime import DIME as DIME
    from sb3_diffusion.weighted_matching.sdac import SDAC as SDAC

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

# Nothing is imported before it is asked for: the command line reads the taxonomy without PyTorch.
_MODULES = {
    "DiffusionPolicy": "sb3_diffusion.policies.diffusion",
    "TensorDictReplayBuffer": "sb3_diffusion.data.replay",
    "TensorNStepReplayBuffer": "sb3_diffusion.data.replay",
    "TensorReplayBuffer": "sb3_diffusion.data.replay",
    "load_agent": "sb3_diffusion.checkpoints.agents",
    "load_normalization": "sb3_diffusion.checkpoints.agents",
    "save_agent": "sb3_diffusion.checkpoints.agents",
}

__all__ = ["__version__", *_MODULES, *(method.name for method in available_methods())]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    for method in TAXONOMY:
        if method.name == name:
            return method.load()
    raise AttributeError(f"module 'sb3_diffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES, *(method.name for method in available_methods())])
