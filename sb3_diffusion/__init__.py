"""Reinforcement learning with diffusion and flow policies for users of Stable-Baselines3."""

import importlib
from pathlib import Path
from typing import Any

from sb3_diffusion.taxonomy import METHODS, available_methods

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

# Nothing is imported before it is asked for: the command line reads the taxonomy without PyTorch. What type checkers see is
# __init__.pyi, which is generated from these two sources (make generate).
_MODULES = {
    "DiffusionPolicy": "sb3_diffusion.policies.diffusion",
    "GaussianPolicy": "sb3_diffusion.policies.gaussian",
    "OfflineDataset": "sb3_diffusion.data.stored.dataset",
    "TensorDictReplayBuffer": "sb3_diffusion.data.replay",
    "TensorNStepReplayBuffer": "sb3_diffusion.data.replay",
    "TensorReplayBuffer": "sb3_diffusion.data.replay",
    "load_agent": "sb3_diffusion.checkpoints.agents",
    "load_dataset": "sb3_diffusion.data.stored.loading",
    "load_normalization": "sb3_diffusion.checkpoints.agents",
    "normalized_score": "sb3_diffusion.data.stored.scores",
    "register_method": "sb3_diffusion.taxonomy",
    "save_agent": "sb3_diffusion.checkpoints.agents",
}

__all__ = ["__version__", *_MODULES, *(method.class_name for method in available_methods())]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    for method in METHODS:
        if method.class_name == name:
            return method.load()
    raise AttributeError(f"module 'sb3_diffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
