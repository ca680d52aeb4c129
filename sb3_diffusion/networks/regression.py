"""Regression losses and target transforms of value functions; all element-wise, the caller averages."""

import torch as th


def expectile_loss(prediction: th.Tensor, target: th.Tensor, expectile: float) -> th.Tensor:
    """
    Asymmetric squared error; its minimiser is an expectile of the target.

    :param prediction: Any shape
    :param target: Shape of ``prediction``
    :param expectile: Weight of targets above the prediction, in (0, 1)
    :return: Shape of ``prediction``
    """
    difference = target - prediction
    return th.where(difference > 0, expectile, 1.0 - expectile) * difference.square()


def quantile_loss(prediction: th.Tensor, target: th.Tensor, quantile: float) -> th.Tensor:
    """
    Asymmetric absolute error; its minimiser is a quantile of the target.

    :param prediction: Any shape
    :param target: Shape of ``prediction``
    :param quantile: Weight of targets above the prediction, in (0, 1)
    :return: Shape of ``prediction``
    """
    difference = target - prediction
    return th.where(difference > 0, quantile, 1.0 - quantile) * difference.abs()


def gumbel_loss(prediction: th.Tensor, target: th.Tensor, temperature: float, max_exponent: float = 5.0) -> th.Tensor:
    """
    Gumbel (LINEX) regression, ``exp(z) + prediction / temperature`` with ``z = (target - prediction) / temperature``;
    its minimiser is the soft maximum of the target. Scaled by ``exp(-max z)`` for stability.

    :param prediction: (batch, ...)
    :param target: Shape of ``prediction``
    :param temperature: Positive
    :param max_exponent: ``z`` is cut here
    :return: Shape of ``prediction``
    """
    z = ((target - prediction) / temperature).clamp(max=max_exponent)
    # a constant for the gradient: it only rescales the loss
    shift = z.detach().amax(dim=0).clamp(min=-1.0)
    return (z - shift).exp() + (-shift).exp() * prediction / temperature


def symlog(x: th.Tensor) -> th.Tensor:
    """``sign(x) log(1 + |x|)``, the inverse of :func:`symexp`."""
    return x.sign() * x.abs().log1p()


def symexp(x: th.Tensor) -> th.Tensor:
    """``sign(x) (exp(|x|) - 1)``, the inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()


def neighbours(values: th.Tensor, low: float, high: float, n_atoms: int) -> tuple[th.Tensor, th.Tensor]:
    """
    Where values lie between equally spaced atoms; values outside are moved to the nearest end.

    :param values: Any shape
    :param low: First atom
    :param high: Last atom
    :param n_atoms: Number of atoms, at least two
    :return: Index of the atom below, at most ``n_atoms - 2``, and the share in [0, 1] that belongs to the atom above
    """
    position = ((values - low) * ((n_atoms - 1) / (high - low))).clamp(0.0, n_atoms - 1.0)
    # a NaN has a position, so that it can be looked up, and a share that is NaN
    below = position.floor().clamp(max=n_atoms - 2.0).nan_to_num()
    return below.long(), position - below


def two_hot(values: th.Tensor, low: float, high: float, n_atoms: int) -> th.Tensor:
    """
    Probabilities on the two atoms around each value whose mean is the value.

    :param values: Any shape
    :param low: First atom
    :param high: Last atom
    :param n_atoms: Number of equally spaced atoms, at least two
    :return: (..., n_atoms)
    """
    below, share = neighbours(values.unsqueeze(-1), low, high, n_atoms)
    out = th.zeros(*values.shape, n_atoms, dtype=values.dtype, device=values.device)
    return out.scatter_(-1, below, 1.0 - share).scatter_(-1, below + 1, share)
