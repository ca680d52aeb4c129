"""Reinforcement learning with diffusion and flow policies for users of Stable-Baselines3."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.taxonomy import TAXONOMY, available_methods

if TYPE_CHECKING:  # at run time the names come from the taxonomy and from _FUNCTIONS, see __getattr__
    from sb3_diffusion.core.checkpoints import load_agent as load_agent
    from sb3_diffusion.core.checkpoints import load_normalization as load_normalization
    from sb3_diffusion.core.checkpoints import save_agent as save_agent
    from sb3_diffusion.q_guidance.dps import DPS as DPS
    from sb3_diffusion.q_guidance.idem import iDEM as iDEM
    from sb3_diffusion.q_guidance.qsm import QSM as QSM
    from sb3_diffusion.reparameterization.dacer import DACER as DACER
    from sb3_diffusion.reparameterization.dacerv2 import DACERv2 as DACERv2
    from sb3_diffusion.reparameterization.dime import DIME as DIME
    from sb3_diffusion.weighted_matching.sdac import SDAC as SDAC

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

_FUNCTIONS = ("load_agent", "load_normalization", "save_agent")

__all__ = ["DiffusionPolicy", "__version__", *_FUNCTIONS, *(method.name for method in available_methods())]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module("sb3_diffusion.core.checkpoints"), name)
    for method in TAXONOMY:
        if method.name == name:
            return method.load()
    raise AttributeError(f"module 'sb3_diffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FUNCTIONS, *(method.name for method in available_methods())])
