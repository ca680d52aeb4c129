"""The loss of Gaussian critics."""

import pytest
import torch as th

from sb3_diffusion.core.critics.distributional import dsac_loss


def test_dsac_loss_value() -> None:
    one = th.ones(1, 1)
    loss = dsac_loss(one, one, 2.0 * one[0], 2.0 * one[0], th.tensor(1.0), half_squared_error=True)
    assert loss.item() == pytest.approx(0.9091 * (0.5 + (1 - 0.5) / 1.1), abs=1e-4)


@pytest.mark.parametrize(("half", "expected"), [(False, 1.0), (True, 0.5**0.5)])
def test_dsac_standard_deviation_approaches_the_error(half: bool, expected: float) -> None:
    """The gradient with respect to the standard deviation vanishes where its square is the (half) expected squared error."""
    std = th.full((1, 2), expected, requires_grad=True)
    targets = th.tensor([1.0, -1.0])  # squared error 1 around a mean of 0
    dsac_loss(th.zeros(1, 2), std, targets, targets, th.tensor(5.0), half_squared_error=half).sum().backward()
    assert std.grad is not None
    th.testing.assert_close(std.grad, th.zeros(1, 2), atol=1e-5, rtol=0.0)
