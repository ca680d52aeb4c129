"""
Reading the golden cases: numbers obtained by running the reference implementation on tiny problems.

A case is a file ``golden/<case>/case.npz`` whose keys are paths: ``params/...`` (weights as (out, in)), ``inputs/...``,
``batch/...``, ``noise/<label>`` (every draw, multi-step draws stacked on the first axis in order of use) and
``expected/...``.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch as th
from torch.nn import functional as F

from sb3_diffusion.generative.randomness import RecordedDraws

GOLDEN_FOLDER = Path(__file__).parent / "golden"
Case = dict[str, th.Tensor]


def load(case: str) -> Case:
    """All arrays of a case by their path."""
    with np.load(GOLDEN_FOLDER / case / "case.npz", allow_pickle=False) as file:
        return {key: th.from_numpy(file[key]) for key in file.files}


def sub(case: Mapping[str, th.Tensor], prefix: str) -> Case:
    """The arrays below a path, by the rest of their path."""
    prefix = prefix.rstrip("/") + "/"
    return {key[len(prefix) :]: value for key, value in case.items() if key.startswith(prefix)}


def recorded(
    case: Mapping[str, th.Tensor], prefix: str = "noise", extra: Mapping[str, th.Tensor] | None = None
) -> RecordedDraws:
    """
    Draws that replay the ``noise/<label>`` arrays of a case.

    :param case: The case
    :param prefix: Path of the draws (cases with several updates use ``"noise/<update>"``)
    :param extra: More draws by label; replaces recorded ones of the same label
    """
    return RecordedDraws({**sub(case, prefix), **(extra or {})})


def close(got: th.Tensor, want: th.Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Assert equality within the tolerance, in float64 and without broadcasting."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    th.testing.assert_close(got.detach().double(), want.double(), rtol=rtol, atol=atol)


def mlp(
    weights: Mapping[str, th.Tensor],
    x: th.Tensor,
    activation: Callable[[th.Tensor], th.Tensor] = F.mish,
    activate_last: bool = False,
) -> th.Tensor:
    """Apply the stored layers ``dense0``, ``dense1``, ... one after the other, with the activation in between."""
    n_layers = len({key.split("/")[0] for key in weights})
    for i in range(n_layers):
        x = F.linear(x, weights[f"dense{i}/weight"], weights[f"dense{i}/bias"])
        if activate_last or i < n_layers - 1:
            x = activation(x)
    return x
