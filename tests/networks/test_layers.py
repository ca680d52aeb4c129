"""Initialisation, ensembles and layer norms."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.networks import layers
from sb3_diffusion.networks.backbones import resolve_backbone
from sb3_diffusion.networks.backbones.base import Backbone
from sb3_diffusion.networks.backbones.bronet import BroNet
from sb3_diffusion.networks.backbones.mlp import MLP, ResidualBlock, ResidualMLP
from sb3_diffusion.networks.backbones.simba import SimBa
from sb3_diffusion.networks.denoiser import Denoiser
from sb3_diffusion.networks.layers import Linear, SplitLinear, he_normal_
from sb3_diffusion.networks.norms import LayerNorm


def assert_orthogonal(weight: th.Tensor, gain: float) -> None:
    """The Gram matrix on the smaller side is gain^2 times the identity, for every member."""
    for member in weight.detach().double().reshape(-1, *weight.shape[-2:]):
        gram = member @ member.t() if member.shape[0] <= member.shape[1] else member.t() @ member
        th.testing.assert_close(gram, gain**2 * th.eye(len(gram), dtype=gram.dtype), rtol=1e-5, atol=1e-5)


def joint_weight(layer: SplitLinear) -> th.Tensor:
    return th.cat([getattr(layer, f"weight_{i}") for i in range(len(layer.in_dims))], dim=-2)


@pytest.mark.parametrize("n_members", [None, 3])
@pytest.mark.parametrize("sizes", [(5, 16), (16, 5), (16, 16)])
def test_linear_starts_orthogonal(n_members: int | None, sizes: tuple[int, int]) -> None:
    layer = Linear(*sizes, n_members)
    assert_orthogonal(layer.weight, math.sqrt(2.0))
    assert not layer.bias.any()


@pytest.mark.parametrize("n_members", [None, 3])
@pytest.mark.parametrize("in_dims", [(3,), (2, 7), (3, 64, 128)])
def test_split_linear_starts_jointly_orthogonal(n_members: int | None, in_dims: tuple[int, ...]) -> None:
    layer = SplitLinear(in_dims, 32, n_members)
    assert_orthogonal(joint_weight(layer), math.sqrt(2.0))
    assert not layer.bias.any()


@pytest.mark.parametrize("n_members", [None, 2])
def test_every_backbone_starts_as_documented(n_members: int | None) -> None:
    root = math.sqrt(2.0)
    mlp = MLP([3, 4], [16, 16], 2, n_members=n_members)
    residual = ResidualMLP([3, 4], [16, 12], 2, n_members=n_members)
    bronet = BroNet([3, 4], [16, 16], 2, n_members=n_members)
    simba = SimBa([3, 4], [64, 64], 2, n_members=n_members)
    nets: list[Backbone] = [mlp, residual, bronet]
    for net in nets:
        for module in net.modules():
            if isinstance(module, Linear):
                assert_orthogonal(module.weight, root)
        assert_orthogonal(joint_weight(net.first), root)
    assert_orthogonal(joint_weight(simba.first), 1.0)
    assert simba.output is not None
    assert_orthogonal(simba.output.weight, 1.0)
    for block in simba.blocks:
        assert isinstance(block, ResidualBlock)
        assert math.isclose(block.expand.weight.std().item(), math.sqrt(2.0 / 64), rel_tol=0.05)
        assert math.isclose(block.contract.weight.std().item(), math.sqrt(2.0 / 256), rel_tol=0.05)
    for net in [*nets, simba]:
        assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))
    small, denoiser = MLP([3], [16], 2, output_gain=0.01), Denoiser(5, 2, output_gain=0.25)
    assert_orthogonal(small.state_dict()["output.weight"], 0.01)
    assert_orthogonal(denoiser.state_dict()["trunk.output.weight"], 0.25)


def test_he_normal_is_cut_at_two_deviations() -> None:
    weight = he_normal_(th.empty(200, 500))
    std = math.sqrt(2.0 / 200)
    assert math.isclose(weight.std().item(), std, rel_tol=0.01)
    assert weight.abs().max() <= 2 * std / 0.8796


@pytest.mark.parametrize("shared", [True, False])
def test_stacked_linear_equals_its_members(shared: bool) -> None:
    layer = Linear(6, 5, 3)
    nn.init.normal_(layer.bias)
    x = th.randn(4, 6) if shared else th.randn(3, 4, 6)
    out = layer(x)
    for i in range(3):
        row = x if shared else x[i]
        th.testing.assert_close(out[i], row @ layer.weight[i] + layer.bias[i], rtol=1e-6, atol=1e-6)


def test_plain_linear_takes_any_leading_axes() -> None:
    layer = Linear(6, 5)
    nn.init.normal_(layer.bias)
    x = th.randn(2, 3, 6)
    th.testing.assert_close(layer(x), F.linear(x, layer.weight.t(), layer.bias))
    th.testing.assert_close(layer(x[0]), F.linear(x[0], layer.weight.t(), layer.bias))


def test_layer_norm() -> None:
    x = 1e-3 * th.randn(2, 4, 8, dtype=th.float64)
    plain, stacked = LayerNorm(8).double(), LayerNorm(8, 2).double()
    for norm in (plain, stacked):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    # values this small show the epsilon
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    th.testing.assert_close(plain(x), normal * plain.weight + plain.bias)
    th.testing.assert_close(stacked(x), normal * stacked.weight + stacked.bias)


@pytest.mark.parametrize("name", ["mlp", "residual", "simba", "bronet"])
@pytest.mark.parametrize("n_members", [None, 2])
def test_gradients_reach_every_parameter_and_copies_are_independent(name: str, n_members: int | None) -> None:
    net = resolve_backbone(name)([3, 4], [16, 16], 2, "mish", n_members, layer_norm=True)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, y = th.randn(32, 3), th.randn(32, 4)
    out = net(net.add_share(1, y, net.share(0, x, bias=True)))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    copy = deepcopy(net)
    with th.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert not copy.full(x, y).any()
    th.testing.assert_close(net.full(x, y), out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "residual", "simba", "bronet"])
def test_state_dict_holds_learned_floats_only(name: str) -> None:
    net = resolve_backbone(name)([3], [16, 16], 2, layer_norm=True)
    assert set(net.state_dict()) == {key for key, _ in net.named_parameters()}
    assert all(tensor.dtype == th.float32 for tensor in net.state_dict().values())


def test_the_activation_may_have_parameters() -> None:
    for name in ("mlp", "residual", "simba", "bronet"):
        net = resolve_backbone(name)([3], [8, 8], 2, nn.PReLU)
        keys = [key for key in net.state_dict() if "activation" in key]
        assert keys and len(keys) == len({p.data_ptr() for key, p in net.state_dict().items() if key in keys})


@pytest.mark.parametrize("n_members", [None, 2])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_without_hidden_layers_an_mlp_is_linear(n_members: int | None, layer_norm: bool) -> None:
    net: Any = MLP([3, 4], [], 2, "mish", n_members, layer_norm, output_gain=0.5, batch_renorm={} if layer_norm else None)
    weight = th.cat([net.first.weight_0, net.first.weight_1], dim=-2)
    for member in weight if n_members else weight.unsqueeze(0):
        assert_orthogonal(member, gain=0.5)
    assert set(net.state_dict()) == {"first.weight_0", "first.weight_1", "first.bias"}
    nn.init.normal_(net.first.bias)
    x, y = th.randn(5, 3), th.randn(5, 7, 4)
    inputs = th.cat([x.unsqueeze(1).expand(5, 7, 3), y], dim=-1).view(35, 7)
    want = (inputs @ weight + net.first.bias).view(*([n_members] if n_members else []), 5, 7, 2)
    with th.no_grad():
        th.testing.assert_close(net.evaluate(1, y, net.share(0, x, bias=True)), want)
        assert net.evaluate_with_gradient(1, y, net.share(0, x, bias=True)) is None


@pytest.mark.parametrize("name", ["mlp", "residual", "simba", "bronet"])
def test_impossible_architectures_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="net_arch"):
        resolve_backbone(name)([3], [0], 2)
    with pytest.raises(ValueError, match=r"net_arch=\[\]"):  # an MLP without layers is linear, but not nothing at all
        resolve_backbone(name)([3], [], None if name == "mlp" else 2)
    if name in ("simba", "bronet"):
        with pytest.raises(ValueError, match=r"\[256, 256\]"):
            resolve_backbone(name)([3], [16, 8], 2)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="mlp, residual, simba, bronet"):
        resolve_backbone("transformer")
    with pytest.raises(TypeError, match="backbone"):
        resolve_backbone(nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer_norm"):
        MLP([3], [8], layer_norm="everywhere")
    with pytest.raises(ValueError, match="in_dims"):
        SplitLinear([3, 0], 8)


@pytest.mark.parametrize("outputs", [1, 3, 8])
@pytest.mark.parametrize("n_members", [None, 2])
def test_narrow_layers_have_the_derivatives_of_wide_ones(
    outputs: int, n_members: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Linear(6, outputs, n_members).double()
    nn.init.normal_(layer.bias)
    lead = () if n_members is None else (n_members,)
    x = th.randn(*lead, 5, 6, dtype=th.float64, requires_grad=True)
    arguments = (x, layer.weight, layer.bias)
    weights = th.randn(*lead, 5, outputs, dtype=th.float64)
    got, got_gradients = layer(x), th.autograd.grad((layer(x) * weights).sum(), arguments)
    assert th.autograd.gradgradcheck(lambda *inputs: layers._NarrowProduct.apply(*inputs), arguments)
    monkeypatch.setattr(layers, "_NARROW", 0)
    th.testing.assert_close(layer(x), got)
    for gradient, expected in zip(got_gradients, th.autograd.grad((layer(x) * weights).sum(), arguments), strict=True):
        th.testing.assert_close(gradient, expected)
