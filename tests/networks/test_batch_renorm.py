"""Batch renormalisation: by hand, against torch's batch norm, stacked, saved, and inside critics."""

import copy
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_diffusion.networks.backbones.mlp import MLP
from sb3_diffusion.networks.critics import ScalarCritics
from sb3_diffusion.networks.distributional_critics import CategoricalCritics, GaussianCritics
from sb3_diffusion.networks.norms import BatchRenorm


def test_by_hand() -> None:
    """A batch with mean 4 and variance 4; running mean 1 and variance 16, no warm-up."""
    layer = BatchRenorm(1, warmup=0, momentum=0.9, eps=0.0)
    layer.running_mean.fill_(1.0)
    layer.running_var.fill_(16.0)
    with th.no_grad():
        layer.weight.fill_(3.0)
        layer.bias.fill_(0.5)
    x = th.tensor([[2.0], [6.0], [2.0], [6.0]])
    # r = 2 / 4, d = (4 - 1) / 4: the result is that of the running statistics, (x - 1) / 4
    th.testing.assert_close(layer(x), 3.0 * (x - 1.0) / 4.0 + 0.5)
    th.testing.assert_close(layer.running_mean, th.tensor([0.9 * 1.0 + 0.1 * 4.0]))
    th.testing.assert_close(layer.running_var, th.tensor([0.9 * 16.0 + 0.1 * 4.0]))
    assert layer.running_batches == 1.0


def test_corrections_are_limited() -> None:
    layer = BatchRenorm(1, warmup=0, r_max=3.0, d_max=5.0, eps=0.0)
    x = th.tensor([[90.0], [110.0]])  # mean 100, deviation 10, beside a running mean of 0 and deviation of 1
    th.testing.assert_close(layer(x), th.tensor([[-1.0], [1.0]]) * 3.0 + 5.0)
    layer = BatchRenorm(1, warmup=0, r_max=3.0, d_max=5.0, eps=0.0)
    x = th.tensor([[-100.01], [-99.99]])
    th.testing.assert_close(layer(x), th.tensor([[-1.0], [1.0]]) / 3.0 - 5.0, rtol=1e-3, atol=1e-3)


def test_is_batch_norm_during_the_warmup() -> None:
    layer, plain = BatchRenorm(3, warmup=2, eps=1e-5), nn.BatchNorm1d(3, eps=1e-5)
    for i in range(4):
        x = th.randn(50, 3) * 2.0 + 1.0
        same = th.allclose(layer(x), plain(x), atol=1e-5)
        assert same == (i < 2)
    assert layer.running_batches == 4.0


def test_corrections_are_constants_for_the_gradient() -> None:
    layer = BatchRenorm(2, warmup=0, r_max=100.0, d_max=100.0).double()  # none of six random rows needs a limit
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    x = th.randn(6, 2, dtype=th.float64, requires_grad=True)
    slope = th.randn(6, 2, dtype=th.float64)
    std = (x.detach().var(0, correction=0) + 1e-3).sqrt()
    running_std = (layer.running_var + 1e-3).sqrt()
    r, d = std / running_std, (x.detach().mean(0) - layer.running_mean) / running_std
    expected_output = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-3).sqrt() * r + d
    (expected,) = th.autograd.grad((expected_output * slope).sum(), x)
    output = layer(x)
    (got,) = th.autograd.grad((output * slope).sum(), x)
    th.testing.assert_close(output, expected_output)
    th.testing.assert_close(got, expected)


def test_evaluation_uses_the_running_statistics_and_leaves_them_alone() -> None:
    layer = BatchRenorm(3)
    layer(th.randn(40, 3) + 2.0)
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    x = th.randn(7, 3)
    expected = (x - layer.running_mean) / (layer.running_var + 1e-3).sqrt()
    th.testing.assert_close(layer(x), expected)
    th.testing.assert_close(layer(x[2:3]), expected[2:3])
    th.testing.assert_close(layer(x.view(1, 7, 3)), expected.view(1, 7, 3))
    assert all(th.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_statistics_are_saved() -> None:
    layer, other = BatchRenorm(3, n_members=2), BatchRenorm(3, n_members=2)
    layer(th.randn(2, 10, 3) + 1.0)
    assert set(layer.state_dict()) == {"weight", "bias", "running_mean", "running_var", "running_batches"}
    other.load_state_dict(layer.state_dict())
    x = th.randn(2, 10, 3)
    th.testing.assert_close(other(x), layer(x), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("training", [True, False])
def test_members_are_normalised_on_their_own(training: bool) -> None:
    stacked = BatchRenorm(4, n_members=3, warmup=1)
    singles = [BatchRenorm(4, warmup=1) for _ in range(3)]
    with th.no_grad():
        stacked.weight.normal_()
        stacked.bias.normal_()
        for i, single in enumerate(singles):
            single.weight.copy_(stacked.weight[i, 0])
            single.bias.copy_(stacked.bias[i, 0])
    for _ in range(3):
        x = th.randn(3, 20, 4) * 3.0
        together = stacked(x)
        th.testing.assert_close(together, th.stack([single(part) for single, part in zip(singles, x, strict=True)]))
    for module in (stacked, *singles):
        module.train(training)
    x = th.randn(3, 20, 4)
    th.testing.assert_close(stacked(x), th.stack([single(part) for single, part in zip(singles, x, strict=True)]))


def test_all_leading_axes_of_a_single_network_are_the_batch() -> None:
    layer, other = BatchRenorm(2), BatchRenorm(2)
    x = th.randn(5, 3, 2)
    th.testing.assert_close(layer(x).view(-1, 2), other(x.view(-1, 2)))


def test_one_row_is_finite() -> None:
    assert bool(BatchRenorm(2)(th.randn(1, 2)).isfinite().all())


def test_follows_each_activation_of_an_mlp() -> None:
    net = MLP([2], [5, 4], 3, batch_renorm={"warmup": 7})
    x = th.randn(9, 2)
    first, second = copy.deepcopy(list(net.batch_norms))
    assert net.output is not None and first.warmup == 7  # type: ignore[union-attr]
    hidden = second(net.hidden[0](first(net.first(x).relu())).relu())
    th.testing.assert_close(net.full(x), net.output(hidden))


@pytest.mark.parametrize("kind", [ScalarCritics, GaussianCritics, CategoricalCritics])
@pytest.mark.parametrize("backbone", ["mlp", "residual", "simba", "bronet"])
def test_critics_share_the_first_layer_behind_their_input_norms(kind: Any, backbone: str) -> None:
    critics = kind(3, 2, n_critics=2, net_arch=(16, 16), backbone=backbone, batch_renorm=True)
    features, actions = th.randn(8, 3) * 4.0 + 1.0, th.rand(8, 2)
    critics.q(actions, critics.encode_state(features))  # gives the running statistics a value
    critics.eval()
    for candidates in (actions, th.rand(8, 5, 2)):
        hoisted = critics.outputs(candidates, critics.encode_state(features))
        th.testing.assert_close(hoisted, critics.full_outputs(features, candidates), rtol=1e-5, atol=1e-5)
    expected = (features - critics.input_norms[0].running_mean) / (critics.input_norms[0].running_var + 1e-3).sqrt()
    th.testing.assert_close(critics.encode_state(features), critics.trunk.share(0, expected, bias=True))
    for i in range(2):
        alone = critics.member(i)
        got = alone.q(actions, alone.encode_state(features))
        th.testing.assert_close(got, critics.q(actions, critics.encode_state(features))[i : i + 1], rtol=1e-5, atol=1e-5)


def test_critics_without_actions() -> None:
    values = ScalarCritics(3, 0, net_arch=(8,), batch_renorm=True)
    assert len(values.input_norms) == 1
    assert values.q(None, values.encode_state(th.randn(4, 3))).shape == (2, 4)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"momentum=1\.0"):
        BatchRenorm(2, momentum=1.0)
    with pytest.raises(ValueError, match=r"r_max=0\.5"):
        BatchRenorm(2, r_max=0.5)
