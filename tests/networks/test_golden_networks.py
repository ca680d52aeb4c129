"""Every forward pass of golden case 03_networks."""

import math
from typing import Any

import pytest
import torch as th
from torch.nn import functional as F

from sb3_diffusion.networks.activations import resolve_activation
from sb3_diffusion.networks.backbones import resolve_backbone
from sb3_diffusion.networks.critics import ScalarCritics
from sb3_diffusion.networks.denoiser import Denoiser
from sb3_diffusion.networks.distributional_critics import CategoricalCritics, GaussianCritics
from sb3_diffusion.networks.embeddings import FourierEmbedding, PositionalEmbedding
from sb3_diffusion.networks.gaussian import DeterministicActor, GaussianActor
from sb3_diffusion.networks.regression import expectile_loss, gumbel_loss, quantile_loss, symexp, symlog
from tests.golden_tools import close, load, sub
from tests.golden_weights import actor_slots, backbone_slots, load_critics, load_denoiser, load_slots

CASE = load("03_networks")
OBS, ACTION = CASE["inputs/obs"], CASE["inputs/action"]
T_CONT, T_DISC = CASE["inputs/t_cont"], CASE["inputs/t_disc"]
OBS_DIM, ACTION_DIM = OBS.shape[-1], ACTION.shape[-1]

BACKBONES: dict[str, tuple[str, list[int], int | None, str, dict[str, Any]]] = {
    **{f"mlp_{name}": ("mlp", [16, 16], 3, name, {}) for name in ("relu", "elu", "mish", "silu", "tanh")},
    "mlp_norm": ("mlp", [16, 16], 3, "mish", {"layer_norm": True}),
    "mlp_postnorm_gelu": ("mlp", [16, 16], 3, "gelu", {"layer_norm": "post"}),
    "simba": ("simba", [16, 16], 3, "relu", {}),
    "simba_noout": ("simba", [16, 16], None, "mish", {"expansion": 2}),
    "bronet": ("bronet", [16, 16], 3, "relu", {}),
    "residual": ("residual", [16, 16], 3, "mish", {"layer_norm": True}),
    "residual_varwidth": ("residual", [16, 12], 3, "relu", {"expansion": 2}),
}

DENOISERS: dict[str, tuple[dict[str, Any], th.Tensor]] = {
    "ddpm_fourier_cond": ({"net_arch": [16, 16, 16], "state_arch": [16, 16]}, T_CONT),
    "ddpm_positional": ({"net_arch": [16, 16], "state_arch": [], "time_embedding": "positional"}, T_DISC),
    "ddpm_simba": ({"net_arch": [16, 16], "state_arch": [16, 16], "backbone": "simba"}, T_CONT),
    "flow_rawtime": ({"net_arch": [16, 16], "state_arch": [], "time_embedding": "raw", "activation": "gelu"}, T_CONT),
}

SCALAR_CRITICS: dict[str, tuple[dict[str, Any], th.Tensor | None]] = {
    "critic_ens": ({"net_arch": [16, 16]}, None),
    "critic_ens_norm": ({"net_arch": [16, 16], "activation": "mish", "layer_norm": True, "n_critics": 3}, None),
    "critic_ens_simba": ({"net_arch": [16, 16], "backbone": "simba"}, None),
    "critic_mlp_ens": ({"net_arch": [16, 16]}, None),
    "critic_postnorm_ens": ({"net_arch": [16, 16], "activation": "gelu", "layer_norm": "post"}, None),
    "critic_disctime": (
        {"net_arch": [16, 16], "activation": "mish", "layer_norm": True, "time_embedding": "positional", "time_dim": 8},
        T_DISC,
    ),
}

GAUSSIAN_ACTORS: dict[str, dict[str, Any]] = {
    "actor_squashed_gauss": {},
    "actor_squashed_gauss_narrow": {"log_std_bounds": (-0.3, 0.3)},
    "actor_squashed_gauss_soft": {"log_std_bounds": (-5.0, 2.0), "soft_bounds": True},
}

FREE_STD_ACTORS: dict[str, dict[str, Any]] = {
    "actor_tanhmean_gauss": {"squash": "mean"},
    "actor_gauss": {"squash": "none", "activation": "elu"},
}


def expected(path: str) -> th.Tensor:
    return CASE[f"expected/{path}"]


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(name: str) -> None:
    spec, net_arch, output_dim, activation, options = BACKBONES[name]
    net = resolve_backbone(spec)([OBS_DIM], net_arch, output_dim, activation, **options)
    load_slots(list(backbone_slots(net)), sub(CASE, f"params/{name}"))
    close(net.full(OBS), expected(f"{name}/out"))
    close(net(net.share(0, OBS, bias=True)), expected(f"{name}/out"))
    with th.no_grad():
        close(net.full(OBS), expected(f"{name}/out"))


@pytest.mark.parametrize("name", ["relu", "elu", "mish", "silu", "tanh", "gelu"])
def test_activation(name: str) -> None:
    activation = resolve_activation(name)()
    want = expected("act/gelu_tanh" if name == "gelu" else f"act/{name}")
    close(activation(CASE["inputs/act_x"]), want)
    # the large-tensor paths of the library's own activations, with and without gradient
    many = CASE["inputs/act_x"].repeat(200)
    close(activation(many), want.repeat(200))
    close(activation(many.requires_grad_()), want.repeat(200))


def test_softplus() -> None:
    close(F.softplus(CASE["inputs/act_x"]), expected("act/softplus"))


@pytest.mark.parametrize("dim", [8, 16, 64])
@pytest.mark.parametrize("time", ["t_cont", "t_disc"])
def test_positional_embedding(dim: int, time: str) -> None:
    close(PositionalEmbedding(dim)(CASE[f"inputs/{time}"]), expected(f"embed_positional{dim}/{time}"))


def test_fourier_embedding() -> None:
    embedding = FourierEmbedding(16)
    with th.no_grad():
        embedding.frequencies.copy_(CASE["params/embed_fourier16/freq"].squeeze(-1))
    close(embedding(T_CONT), expected("embed_fourier16/t_cont"))


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser(name: str) -> None:
    options, t = DENOISERS[name]
    denoiser = Denoiser(OBS_DIM, ACTION_DIM, time_dim=8, **options)
    load_denoiser(denoiser, sub(CASE, f"params/{name}"))
    c, e = denoiser.encode_state(OBS), denoiser.encode_time(t)
    close(denoiser(ACTION, c, e), expected(f"{name}/out"))
    close(denoiser(ACTION.unsqueeze(1), c, e).squeeze(1), expected(f"{name}/out"))
    close(denoiser.full(ACTION, t, OBS), expected(f"{name}/out"))


@pytest.mark.parametrize("name", SCALAR_CRITICS)
def test_scalar_critics(name: str) -> None:
    options, t = SCALAR_CRITICS[name]
    critics = ScalarCritics(OBS_DIM, ACTION_DIM, **options)
    load_critics(critics, sub(CASE, f"params/{name}"))
    want = expected(f"{name}/q").squeeze(-1)
    e = None if t is None else critics.encode_time(t)
    close(critics(ACTION, critics.encode_state(OBS), e), want)
    close(critics.full(OBS, ACTION, t), want)
    for i in range(critics.n_critics):
        close(critics.member(i).full(OBS, ACTION, t), want[i : i + 1])


def test_gaussian_critics() -> None:
    critics = GaussianCritics(OBS_DIM, ACTION_DIM, net_arch=[16, 16])
    load_critics(critics, sub(CASE, "params/critic_gaussian"))
    c = critics.encode_state(OBS)
    mean, std = critics(ACTION, c)
    close(mean, expected("critic_gaussian/mean").squeeze(-1))
    close(std, expected("critic_gaussian/std").squeeze(-1))
    close(critics.q(ACTION, c), expected("critic_gaussian/mean").squeeze(-1))


def test_categorical_critics() -> None:
    critics = CategoricalCritics(
        OBS_DIM, ACTION_DIM, net_arch=[16, 16], backbone="bronet", n_atoms=11, v_min=-10, v_max=10, symlog_values=True
    )
    load_critics(critics, sub(CASE, "params/critic_categorical"))
    c = critics.encode_state(OBS)
    close(critics(ACTION, c), expected("critic_categorical/logits"))
    close(critics.q(ACTION, c), expected("critic_categorical/value_symexp").squeeze(-1))


def test_state_value() -> None:
    value = ScalarCritics(OBS_DIM, 0, n_critics=1, net_arch=[16, 16], activation="elu")
    load_critics(value, sub(CASE, "params/value_single"))
    c = value.encode_state(OBS)
    for _ in range(2):  # the encoded states of the caller must survive the call
        with th.no_grad():
            close(value(None, c)[0], expected("value_single/v").squeeze(-1))
    close(value.full(OBS)[0], expected("value_single/v").squeeze(-1))


def test_deterministic_actor() -> None:
    actor = DeterministicActor(OBS_DIM, ACTION_DIM, [16, 16])
    load_slots(actor_slots(actor), sub(CASE, "params/actor_tanh_det"))
    close(actor(OBS), expected("actor_tanh_det/action"))


@pytest.mark.parametrize("name", GAUSSIAN_ACTORS)
def test_squashed_gaussian_actor(name: str) -> None:
    actor = GaussianActor(OBS_DIM, ACTION_DIM, [16, 16], **GAUSSIAN_ACTORS[name])
    load_slots(actor_slots(actor), sub(CASE, f"params/{name}"))
    mean, std = actor(OBS)
    sample, log_prob = actor.sample(OBS, CASE[f"noise/{name}"])
    close(mean, expected(f"{name}/pre_mean"))
    close(std, expected(f"{name}/pre_std"))
    close(actor.mode(OBS), expected(f"{name}/mode_action"))
    close(sample, expected(f"{name}/sample"))
    close(log_prob, expected(f"{name}/sample_log_prob"))
    close(actor.log_prob(OBS, ACTION), expected(f"{name}/log_prob_of_action"))


@pytest.mark.parametrize("name", FREE_STD_ACTORS)
def test_gaussian_actor_with_free_std(name: str) -> None:
    actor = GaussianActor(OBS_DIM, ACTION_DIM, [16, 16], state_dependent_std=False, **FREE_STD_ACTORS[name])
    assert actor.log_std is not None and not actor.log_std.any()
    load_slots(actor_slots(actor), sub(CASE, f"params/{name}"))
    mean, std = actor(OBS)
    close(mean, expected(f"{name}/mean"))
    close(std, expected(f"{name}/std"))
    close(actor.mode(OBS), expected(f"{name}/mean"))
    close(actor.log_prob(OBS, ACTION), expected(f"{name}/log_prob_of_action"))
    close(actor.entropy(OBS), expected(f"{name}/entropy"))


def test_regression_losses() -> None:
    prediction, target = CASE["inputs/loss_pred"], CASE["inputs/loss_target"]
    close(expectile_loss(prediction, target, 0.7), expected("loss/expectile_0.7"))
    close(quantile_loss(prediction, target, 0.7), expected("loss/quantile_0.7"))
    close(gumbel_loss(prediction, target, 0.5), expected("loss/gumbel_0.5"))


def test_symlog() -> None:
    x = CASE["inputs/symlog_x"]
    close(symlog(x), expected("loss/symlog"))
    close(symexp(symlog(x)), expected("loss/symexp_of_symlog"))


def test_every_entry_is_covered() -> None:
    covered = {"act", "loss", "embed_fourier16", "critic_gaussian", "critic_categorical", "value_single", "actor_tanh_det"}
    covered |= {f"embed_positional{dim}" for dim in (8, 16, 64)}
    for table in (BACKBONES, DENOISERS, SCALAR_CRITICS, GAUSSIAN_ACTORS, FREE_STD_ACTORS):
        covered |= set(table)
    assert covered == {path.split("/")[1] for path in CASE if path.startswith("expected/")}
    assert math.isclose(T_DISC.max().item(), 20.0)
