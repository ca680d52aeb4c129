"""The U-shaped denoiser: what is shared between actions, states and times, and what it refuses."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion.networks.backbones import resolve_backbone
from sb3_diffusion.networks.backbones.unet import ActionUNet, ConditionedBlock
from sb3_diffusion.networks.critics import ScalarCritics
from sb3_diffusion.networks.denoiser import Denoiser


def denoiser(**settings: Any) -> Denoiser:
    arguments = {"activation": "silu", "time_embedding": "random", "time_dim": 8, "state_arch": (6,), **settings}
    return Denoiser(4, 3, [32, 16, 8], backbone="unet", **arguments)


@pytest.mark.parametrize("activation", ["silu", "mish"])  # the kernels know one of them
@pytest.mark.parametrize(("actions", "times"), [((5, 3), (1,)), ((5, 3), (5, 1)), ((5, 7, 3), (5, 1)), ((5, 7, 3), (5, 7, 1))])
def test_sharing_changes_nothing(activation: str, actions: tuple[int, ...], times: tuple[int, ...]) -> None:
    th.manual_seed(0)
    network = denoiser(activation=activation)
    x, t, features = th.randn(actions), th.rand(times), th.randn(5, 4)
    with th.no_grad():
        shared = network(x, network.encode_state(features), network.encode_time(t))
        full = network.full(x, t.expand(5, 1) if t.dim() == 1 else t, features)
        chain = network.bind(network.encode_state(features), network.encode_time(th.full((2, 1), 0.5)))(x, 1)
        th.testing.assert_close(shared, full, rtol=1e-4, atol=1e-5)
        th.testing.assert_close(chain, network.full(x, th.full((5, 1), 0.5), features), rtol=1e-4, atol=1e-5)


def test_a_block_by_hand() -> None:
    block = ConditionedBlock(1, 1, 1, th.nn.Identity)
    with th.no_grad():
        for layer, weight in ((block.enter, 2.0), (block.condition, 3.0), (block.leave, 5.0)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
        assert block.skip is None
        assert block(th.tensor([[7.0]]), th.tensor([[11.0]])).item() == 5.0 * (2.0 * 7.0 + 3.0 * 11.0) + 7.0


def test_everything_gets_a_gradient() -> None:
    network = denoiser()
    network(th.randn(5, 3), network.encode_state(th.randn(5, 4)), network.encode_time(th.rand(5, 1))).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_random_frequencies_are_those_of_every_network() -> None:
    first: Any = denoiser()
    second: Any = denoiser()
    frequencies = first.time_net.embedding.frequencies
    assert th.equal(frequencies, second.time_net.embedding.frequencies) and len(set(frequencies.tolist())) == 4
    assert not any("frequencies" in name for name in first.state_dict())
    long: Any = Denoiser(1, 1, [8], time_embedding="random", time_dim=20_000, state_arch=()).time_net
    assert long.embedding.frequencies.std().item() == pytest.approx(30.0, rel=0.05)


def test_it_is_for_denoisers_alone() -> None:
    with pytest.raises(ValueError, match="backbone='unet' is unknown; choose one of mlp"):
        resolve_backbone("unet")
    with pytest.raises(ValueError, match="backbone='unet' is that of a denoiser"):
        ScalarCritics(4, 3, backbone=ActionUNet)
    with pytest.raises(ValueError, match="without layer_norm"):
        denoiser(layer_norm=True)
