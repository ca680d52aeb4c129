"""Memory of large records is used again, and nobody notices."""

import shutil
from typing import Any

import pytest
import torch as th

from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.kernels import records, switched_off
from sb3_diffusion.kernels.records import MAX_SPARE, Records
from sb3_diffusion.networks.denoiser import Denoiser

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="the compiled kernels need a C++ compiler")
LIKE = th.empty(0)


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LARGE", 8)


def test_memory_is_used_again_and_grows() -> None:
    memory = Records()
    first = memory.new(LIKE, (4, 8))
    where = first.data_ptr()
    assert memory.new(LIKE, (4, 8)).data_ptr() != where  # nobody has given it back
    memory.give_back(first)
    smaller = memory.new(LIKE, (2, 8))
    assert smaller.data_ptr() == where and smaller.shape == (2, 8)
    memory.give_back(smaller)
    assert memory.new(LIKE, (4, 8)).data_ptr() == where  # its whole length
    memory.give_back(first)
    assert memory.new(LIKE, (4, 9)).shape == (4, 9)  # which does not fit


def test_small_records_are_left_to_the_allocator_and_few_are_kept() -> None:
    memory = Records()
    small = memory.new(LIKE, (7,))
    memory.give_back(small)
    kept = [memory.new(LIKE, (8,)) for _ in range(MAX_SPARE + 1)]
    for record in kept:
        memory.give_back(record)
    again = {memory.new(LIKE, (8,)).data_ptr() for _ in range(MAX_SPARE)}
    assert again == {record.data_ptr() for record in kept[:MAX_SPARE]}
    assert not memory._spare


@needs_compiler
@pytest.mark.parametrize("n_contexts", [6, 2])
def test_gradients_outlive_the_memory_that_they_came_from(n_contexts: int) -> None:
    """Also those of the context, which lie in it where every row has a context of its own."""
    network = Denoiser(4, 3, net_arch=(64, 64))

    def gradients(seed: int) -> tuple[th.Tensor, ...]:
        generator = th.Generator().manual_seed(seed)
        context = th.randn(n_contexts, 4, generator=generator).requires_grad_()
        x = th.randn(n_contexts, 6 // n_contexts, 3, generator=generator).requires_grad_()
        state, time = network.encode_state(context), network.encode_time(th.full((1,), 0.3))
        # two records before the first is consumed
        out, other = network(x, state, time), network(2.0 * x, state, time)
        return th.autograd.grad(out.square().sum() + other.sum(), [context, x, *network.parameters()])

    taken = [gradients(seed) for seed in range(3)]
    with switched_off():
        expected = [gradients(seed) for seed in range(3)]
    for mine, want in zip(sum(taken, ()), sum(expected, ()), strict=True):
        th.testing.assert_close(mine, want, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_a_graph_that_is_kept_can_be_pulled_back_twice() -> None:
    network, sampler = Denoiser(4, 3, net_arch=(64, 64)), ContinuousDiffusion().sampler(5)
    observations, noise = th.randn(2, 4), th.randn(2, 3)

    def pulls() -> list[Any]:
        bound = network.bind_features(observations, sampler.times.unsqueeze(-1))
        total = bound(noise, 0).sum() + bound(noise, 2).square().sum()
        return [th.autograd.grad(total, list(network.parameters()), retain_graph=True) for _ in range(2)]

    first, second = pulls()
    for mine, want in zip(first, second, strict=True):
        th.testing.assert_close(mine, want)
