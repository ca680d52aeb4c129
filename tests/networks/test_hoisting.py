"""The two-phase evaluation equals the plain one: same numbers, same gradients, caller's tensors untouched."""

from itertools import product
from typing import Any, TypeVar

import pytest
import torch as th
from torch import nn

from sb3_diffusion.networks.backbones import BACKBONES, resolve_backbone
from sb3_diffusion.networks.critics import ScalarCritics
from sb3_diffusion.networks.denoiser import Denoiser
from sb3_diffusion.networks.distributional_critics import CategoricalCritics, GaussianCritics
from sb3_diffusion.networks.embeddings import TIME_EMBEDDINGS

BATCH, N, FEATURES, ACTIONS = 6, 5, 11, 3
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
Kind = ScalarCritics | GaussianCritics | CategoricalCritics
Outputs = th.Tensor | tuple[th.Tensor, ...]
Module = TypeVar("Module", bound=nn.Module)
CRITICS: list[type[Kind]] = [ScalarCritics, GaussianCritics, CategoricalCritics]


def randomise(module: Module) -> Module:
    """Non-zero biases, or a forgotten bias would not be seen."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return module


def as_tuple(x: Outputs) -> tuple[th.Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def assert_same(got: Outputs, want: Outputs) -> None:
    for a, b in zip(as_tuple(got), as_tuple(want), strict=True):
        th.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("n_members", [None, 2])
@pytest.mark.parametrize("lead", [(BATCH,), (BATCH, N)])
def test_backbone_shares_add_up(backbone: str, n_members: int | None, lead: tuple[int, ...]) -> None:
    net = randomise(resolve_backbone(backbone)([ACTIONS, 4, FEATURES], [16, 16], 3, "mish", n_members, layer_norm=True))
    parts = [th.randn(*lead, size) for size in net.first.in_dims]
    pre = net.share(2, parts[2], bias=True) + net.share(1, parts[1])
    want = net.full(*parts)
    assert want.shape == ((*lead, 3) if n_members is None else (n_members, *lead, 3))
    assert_same(net(pre + net.share(0, parts[0])), want)
    assert_same(net(net.add_share(0, parts[0], pre)), want)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("options", [{}, {"state_arch": ()}, {"layer_norm": True}, {"activation": "relu"}])
@pytest.mark.parametrize("grad", [True, False])
def test_denoiser(backbone: str, options: dict[str, Any], grad: bool) -> None:
    denoiser = randomise(Denoiser(FEATURES, ACTIONS, (32, 32), backbone=backbone, time_dim=8, **options))
    features = th.randn(BATCH, FEATURES)
    with th.set_grad_enabled(grad):
        c = denoiser.encode_state(features)
        for x_shape, t_shape in product([(BATCH,), (BATCH, N)], [(1,), (BATCH, 1), (BATCH, N, 1)]):
            if len(t_shape) == 3 and len(x_shape) == 1:
                continue
            x, t = th.randn(*x_shape, ACTIONS), th.rand(t_shape)
            e = denoiser.encode_time(t)
            copies = [tensor.clone() for tensor in (x, c, e)]
            assert_same(denoiser(x, c, e), denoiser.full(x, t, features))
            assert_same((x, c, e), tuple(copies))


def test_denoiser_with_one_state_and_many_particles() -> None:
    denoiser = randomise(Denoiser(FEATURES, ACTIONS, (16, 16)))
    features, x, t = th.randn(1, FEATURES), th.randn(1, N, ACTIONS), th.rand(1)
    c, e = denoiser.encode_state(features), denoiser.encode_time(t)
    assert_same(denoiser(x, c, e)[0], denoiser(x[0], c, e))
    assert_same(denoiser(x, c, e), denoiser.full(x, t, features))


@pytest.mark.parametrize("time_embedding", TIME_EMBEDDINGS)
def test_denoiser_time_embeddings(time_embedding: str) -> None:
    denoiser = randomise(Denoiser(FEATURES, ACTIONS, (16, 16), time_embedding=time_embedding, time_dim=8))
    features, x, t = th.randn(BATCH, FEATURES), th.randn(BATCH, ACTIONS), th.rand(BATCH, 1)
    got = denoiser(x, denoiser.encode_state(features), denoiser.encode_time(t))
    assert_same(got, denoiser.full(x, t, features))
    assert (got - denoiser.full(x, t + 0.3, features)).abs().max() > 1e-4, "the output must depend on the time"
    # a whole grid of times at once is the same as one after the other
    grid = th.rand(7, 1)
    assert_same(denoiser.encode_time(grid)[3], denoiser.encode_time(grid[3]))


def test_denoiser_gradients_agree() -> None:
    denoiser = randomise(Denoiser(FEATURES, ACTIONS, (32, 32), time_dim=8))
    features, x, t = th.randn(BATCH, FEATURES), th.randn(BATCH, N, ACTIONS, requires_grad=True), th.rand(BATCH, 1)
    inputs = [x, *denoiser.parameters()]
    hoisted = denoiser(x, denoiser.encode_state(features), denoiser.encode_time(t)).square().sum()
    plain = denoiser.full(x, t, features).square().sum()
    for a, b in zip(th.autograd.grad(hoisted, inputs), th.autograd.grad(plain, inputs), strict=True):
        assert b.abs().max() > 0
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("options", [{}, {"state_arch": (), "time_activation": "mish"}, {"output_scale": 0.5}, {"n_times": 2}])
@pytest.mark.parametrize("time_embedding", ["fourier", "raw"])
def test_denoiser_at_times(backbone: str, options: dict[str, Any], time_embedding: str) -> None:
    """A time of each action's own, which enters the trunk beside it, is the same in all gradients as well."""
    denoiser = Denoiser(FEATURES, ACTIONS, (32, 32), "elu", backbone, time_embedding=time_embedding, time_dim=8, **options)
    randomise(denoiser)
    features, n_times = th.randn(BATCH, FEATURES), options.get("n_times", 1)
    for x_shape, t_shape in [((BATCH, N), (BATCH, N)), ((BATCH, N), (1, N)), ((BATCH, N), (BATCH,)), ((BATCH,), (BATCH,))]:
        x = th.randn(*x_shape, ACTIONS, requires_grad=True)
        t = th.rand(*t_shape, n_times, requires_grad=True)
        inputs = [x, t, *denoiser.parameters()]
        got, want = denoiser.at_times(x, denoiser.encode_state(features), t), denoiser.full(x, t, features)
        assert_same(got, want)
        gradients = (th.autograd.grad(out.square().sum(), inputs) for out in (got, want))
        for a, b in zip(*gradients, strict=True):
            th.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("critics_class", CRITICS)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("time_embedding", [None, "positional", "fourier", "raw"])
def test_critics(critics_class: type[Kind], backbone: str, time_embedding: str | None) -> None:
    critics = critics_class(
        FEATURES, ACTIONS, n_critics=3, net_arch=(16, 16), backbone=backbone, time_embedding=time_embedding, time_dim=8
    )
    randomise(critics)
    features = th.randn(BATCH, FEATURES)
    c = critics.encode_state(features)
    assert c.shape[:2] == (3, BATCH)
    times = [None] if time_embedding is None else [th.rand(1), th.rand(BATCH, 1), th.rand(BATCH, N, 1)]
    for lead, t in product([(BATCH,), (BATCH, N)], times):
        if t is not None and t.dim() == 3 and len(lead) == 1:
            continue
        actions, before = th.randn(*lead, ACTIONS), c.clone()
        e = None if t is None else critics.encode_time(t)
        with th.no_grad():
            assert_same(critics(actions, c, e), critics.full(features, actions, t))
        assert_same(critics(actions, c, e), critics.full(features, actions, t))
        assert critics.q(actions, c, e).shape == (3, *lead)
        assert_same(c, before)


@pytest.mark.parametrize("critics_class", CRITICS)
def test_state_values(critics_class: type[Kind]) -> None:
    critics = randomise(critics_class(FEATURES, 0, net_arch=(16, 16), time_embedding="positional", time_dim=8))
    features, t = th.randn(BATCH, FEATURES), th.rand(BATCH, 1)
    assert_same(critics(None, critics.encode_state(features), critics.encode_time(t)), critics.full(features, None, t))


@pytest.mark.parametrize("grad", [False, True])
def test_a_factor_of_the_prediction(grad: bool) -> None:
    sizes: dict[str, Any] = {"net_arch": (16,), "activation": "mish", "time_activation": "relu", "state_arch": (8,)}
    plain, scaled = (randomise(Denoiser(FEATURES, ACTIONS, **sizes, output_scale=scale)) for scale in (1.0, 0.25))
    scaled.load_state_dict(plain.state_dict())
    x, features, t = th.randn(BATCH, ACTIONS), th.randn(BATCH, FEATURES), th.rand(BATCH, 1)
    with th.set_grad_enabled(grad):
        outputs = [net(x, net.encode_state(features), net.encode_time(t)) for net in (plain, scaled)]
        assert_same(outputs[1], 0.25 * outputs[0])
        assert_same(outputs[1], scaled.full(x, t, features))
        assert scaled.bind_features(features, t[:1]).run_chain(x, th.zeros(1, 8), None, (-1.0, 1.0)) is None


class Doubled(Denoiser):
    """What a user may write."""

    def forward(self, x: th.Tensor, c: th.Tensor, e: th.Tensor) -> th.Tensor:
        return 2.0 * super().forward(x, c, e)


def test_a_denoiser_of_a_users_own_is_asked_itself() -> None:
    plain, doubled = (randomise(cls(FEATURES, ACTIONS, net_arch=[16, 16])) for cls in (Denoiser, Doubled))
    doubled.load_state_dict(plain.state_dict())
    x, t, c = th.randn(BATCH, N, ACTIONS), th.rand(BATCH, N, 1), plain.encode_state(th.randn(BATCH, FEATURES))
    assert_same(doubled.at_times(x, c, t), 2.0 * plain.at_times(x, c, t))
