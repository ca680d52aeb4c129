"""Golden case 03_optimizers: torch's own optimisers follow the conventions of the reference implementation."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch as th

from tests.golden_tools import close, load

CASE = load("03_optimizers")
RTOL, ATOL = 1e-5, 1e-6
LEARNING_RATE = 1e-2


def cosine(step: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(step, 4) / 4))


def linear(step: int) -> float:
    return 1.0 - 0.9 * min(max(step - 1, 0), 3) / 3


def run(
    optimizer_class: Callable[..., th.optim.Optimizer],
    max_norm: float | None = None,
    schedule: Callable[[int], float] | None = None,
    **options: Any,
) -> Iterator[tuple[int, th.Tensor, th.Tensor, th.Tensor]]:
    """Six steps with the recorded gradients; yields the step, w and b after it, and the gradient of w that was used."""
    parameters = [th.nn.Parameter(CASE[f"params/{name}"].clone()) for name in ("w", "b")]
    optimizer = optimizer_class(parameters, lr=LEARNING_RATE, **options)
    scheduler = None if schedule is None else th.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for k in range(6):
        for parameter, name in zip(parameters, ("w", "b"), strict=True):
            parameter.grad = CASE[f"inputs/grad_{name}"][k].clone()
        if max_norm is not None:
            th.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        gradient = parameters[0].grad
        assert gradient is not None
        yield k, parameters[0], parameters[1], gradient
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize(
    ("name", "optimizer_class", "options"),
    [
        ("adam", th.optim.Adam, {}),
        ("adam", th.optim.Adam, {"fused": True}),
        ("adamw", th.optim.AdamW, {"weight_decay": 1e-2}),
        ("clip_adam", th.optim.Adam, {"max_norm": 1.0}),
        ("adam_cosine4", th.optim.Adam, {"schedule": cosine}),
        ("adam_linear", th.optim.Adam, {"schedule": linear}),
    ],
)
def test_optimizer(name: str, optimizer_class: type[th.optim.Optimizer], options: dict[str, Any]) -> None:
    for k, w, b, _ in run(optimizer_class, **options):
        close(w, CASE[f"expected/{name}/w"][k], RTOL, ATOL)
        close(b, CASE[f"expected/{name}/b"][k], RTOL, ATOL)


def test_joint_norm_clipping() -> None:
    _, _, _, clipped = next(run(th.optim.Adam, max_norm=1.0))
    close(clipped, CASE["expected/clipped_grad_w"], RTOL, ATOL)


def test_target_rate_multiplies_the_new_value() -> None:
    target = CASE["inputs/grad_w"][0].clone()
    close(target.lerp_(CASE["params/w"], 0.1), CASE["expected/ema_0.1"], RTOL, ATOL)
