"""
Compiled CPU kernels: whole networks and diffusion chains in one call each.

``mlp.cpp`` is compiled with the machine's C++ compiler when it is first needed (a few seconds), for the machine's own
instruction set, and kept in ``~/.cache/sb3_diffusion`` (``$XDG_CACHE_HOME``). Without a compiler, everything runs through
PyTorch's own operations after one warning. ``SB3_DIFFUSION_KERNELS=0`` switches the kernels off.

The kernels take float32 CPU tensors. Every call asks the guard (``guard.py``) and returns None, or False, where PyTorch has to
do it. Whole networks and whole chains are single nodes of autograd, which keep what their backward pass needs. They have no
second derivative.
"""

from sb3_diffusion.kernels.encoded import EncodedChain, KeptTimes
from sb3_diffusion.kernels.guard import Watch, hooked, observed, switched_off
from sb3_diffusion.kernels.library import KernelError, build
from sb3_diffusion.kernels.loader import load_kernels, mish, usable
from sb3_diffusion.kernels.network import Network
from sb3_diffusion.kernels.unguarded import ACTIVATIONS, KernelLayer, fit_together

__all__ = [
    "ACTIVATIONS",
    "EncodedChain",
    "KeptTimes",
    "KernelError",
    "KernelLayer",
    "Network",
    "Watch",
    "build",
    "fit_together",
    "hooked",
    "load_kernels",
    "mish",
    "observed",
    "switched_off",
    "usable",
]
