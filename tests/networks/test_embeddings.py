"""Time embeddings: shapes, parameters, frequencies."""

import math

import pytest
import torch as th

from sb3_diffusion.networks.embeddings import (
    TIME_EMBEDDINGS,
    FourierEmbedding,
    OctaveEmbedding,
    PositionalEmbedding,
    RawTime,
    SinusoidalEmbedding,
    resolve_time_embedding,
)


@pytest.mark.parametrize("name", TIME_EMBEDDINGS)
@pytest.mark.parametrize("shape", [(1,), (4, 1), (4, 3, 1)])
@pytest.mark.parametrize("dim", [2, 8, 64])
def test_shapes(name: str, shape: tuple[int, ...], dim: int) -> None:
    embedding = resolve_time_embedding(name)(dim)
    out = embedding(th.rand(shape))
    assert out.shape == (*shape[:-1], embedding.dim)
    assert embedding.dim == (1 if name == "raw" else dim)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", TIME_EMBEDDINGS)
def test_only_fourier_is_learned(name: str) -> None:
    embedding = resolve_time_embedding(name)(8)
    learned = ["frequencies"] if name == "fourier" else []
    assert list(embedding.state_dict()) == learned
    assert [key for key, _ in embedding.named_parameters()] == learned


def test_fourier_start_and_gradient() -> None:
    embedding = FourierEmbedding(4096)
    assert math.isclose(embedding.frequencies.std().item(), 0.2, rel_tol=0.05)
    embedding(th.rand(5, 1))[:, 0].sum().backward()
    assert embedding.frequencies.grad is not None
    assert embedding.frequencies.grad[0] != 0 and not embedding.frequencies.grad[1:].any()


def test_definitions() -> None:
    t = th.tensor([[0.7], [3.0]])
    frequencies = th.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4])
    angles = t * frequencies
    th.testing.assert_close(PositionalEmbedding(8)(t), th.cat([angles.cos(), angles.sin()], -1))
    th.testing.assert_close(SinusoidalEmbedding(8)(t), th.cat([angles.sin(), angles.cos()], -1))
    octaves = t * th.tensor([1.0, 2.0, 4.0, 8.0])
    th.testing.assert_close(OctaveEmbedding(8)(t), th.cat([octaves.cos(), octaves.sin()], -1))
    assert RawTime(64)(t) is t


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="positional, sinusoidal, fourier, random, octave, raw"):
        resolve_time_embedding("wavelet")
    with pytest.raises(TypeError, match="time_embedding"):
        resolve_time_embedding(th.nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time_dim=7"):
        FourierEmbedding(7)
