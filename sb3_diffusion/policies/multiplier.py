"""A learned positive number: a temperature or the multiplier of a constraint."""

import math
from typing import Any

import torch as th
from torch import nn

from sb3_diffusion.numeric import real

VALUE_RANGE = (1e-5, 1e5)
"""A constraint that cannot be met would drive the number to zero or infinity."""


class Multiplier(nn.Module):
    r"""
    A positive number ``value`` that is learned by descending ``value * slope``; its logarithm is the parameter.

    :param initial: Initial value, between the bounds
    :param learning_rate: Learning rate of the logarithm (Adam)
    :param low: Smallest value, positive
    :param high: Largest value
    """

    def __init__(self, initial: float, learning_rate: float, low: float = VALUE_RANGE[0], high: float = VALUE_RANGE[1]):
        super().__init__()
        low, high = real("low", low, above=0), real("high", high, above=0)
        initial = real("initial", initial, low, high, remedy="a learned number starts within its range")
        learning_rate = real("learning_rate", learning_rate, low=0, remedy="0 keeps the number")
        self.log_range = math.log(low), math.log(high)
        self.log_value = nn.Parameter(th.tensor(math.log(initial)))
        self.optimizer = th.optim.Adam([self.log_value], lr=learning_rate, fused=True)

    def forward(self) -> th.Tensor:
        """
        :return: The value, a scalar without gradient
        """
        return self.log_value.detach().exp()

    def descend(self, slope: th.Tensor, logarithmic: bool = False) -> th.Tensor:
        """
        One step on ``value * slope``: a negative slope raises the value.

        For the Lagrange multiplier of ``constraint <= bound`` the slope is ``bound - constraint``.

        :param slope: Scalar, whose own gradient is ignored
        :param logarithmic: Step on ``log(value) * slope`` instead, whose gradient does not shrink with the value
        :return: What was stepped on, a scalar without gradient
        """
        loss = (self.log_value if logarithmic else self.log_value.exp()) * slope.detach()
        if self.log_value.requires_grad:  # not frozen by the user
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=[self.log_value])
            self.optimizer.step()
            with th.no_grad():
                self.log_value.clamp_(*self.log_range)
        return loss.detach()


class PlainMultiplier(nn.Module):
    """
    The same number, itself the parameter and learned by plain gradient descent: it moves in equal steps wherever it is.

    :param initial: Initial value, between the bounds
    :param learning_rate: Largest step, for a slope of one
    :param low: Smallest value, positive
    :param high: Largest value
    """

    def __init__(self, initial: float, learning_rate: float, low: float = VALUE_RANGE[0], high: float = VALUE_RANGE[1]):
        super().__init__()
        self.range = real("low", low, above=0), real("high", high, above=0)
        initial = real("initial", initial, *self.range, remedy="a learned number starts within its range")
        learning_rate = real("learning_rate", learning_rate, low=0, remedy="0 keeps the number")
        self.value = nn.Parameter(th.tensor(initial))
        self.optimizer = th.optim.SGD([self.value], lr=learning_rate, fused=True)

    def forward(self) -> th.Tensor:
        """
        :return: The value, a scalar without gradient
        """
        return self.value.detach().clone()  # the next step is in place

    def descend(self, slope: th.Tensor) -> th.Tensor:
        """
        One step on ``value * slope``: a negative slope raises the value.

        :param slope: Scalar, whose own gradient is ignored
        :return: What was stepped on, a scalar without gradient
        """
        slope = slope.detach()
        if self.value.requires_grad:  # not frozen by the user
            self.value.grad = slope.clone()
            self.optimizer.step()
            with th.no_grad():
                self.value.clamp_(*self.range)
        return self.value.detach() * slope


def make_multiplier(plain: bool = False, **options: Any) -> Multiplier | PlainMultiplier:
    """
    :param plain: Whether the number itself is the parameter, not its logarithm
    :param options: Arguments of :class:`Multiplier`
    :return: The learned number
    """
    return PlainMultiplier(**options) if plain else Multiplier(**options)
