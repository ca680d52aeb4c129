"""Chains with the stored networks and draws of the reference implementation."""

from typing import Any

import pytest
import torch as th
from torch.nn import functional as F

from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.coupled_flow import CoupledFlow
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.flow import FlowMatching
from sb3_diffusion.generative.langevin import (
    Langevin,
    annealed_levels,
    annealed_step_sizes,
    energy_gradient,
    exponential_step_sizes,
    polynomial_step_sizes,
)
from sb3_diffusion.generative.process import ChainSampler, Denoise
from tests.golden_tools import Case, close, load, mlp, recorded, sub

CONTINUOUS = load("02_sampler_continuous_ddpm")
DISCRETE = load("02_sampler_discrete_ddpm")
FLOW = load("02_sampler_flow")
LANGEVIN = load("02_sampler_langevin")
SCHEDULES = load("01_schedules")
ATOL = 2e-5
# the reference's own choices, where ours differ
AS_REFERENCE: dict[str, Any] = {"ddim_recompute_noise": False, "lower_order_final": False}


def continuous_network(case: Case, t: th.Tensor, condition: th.Tensor, x: th.Tensor) -> th.Tensor:
    net = sub(case, "params/net")
    angle = 2 * th.pi * t * net["time_embed/freq"].T
    time = mlp(sub(net, "time_mlp"), th.cat([angle.cos(), angle.sin()], -1), activate_last=True)
    state = mlp(sub(net, "cond_mlp"), condition, activate_last=True)
    return mlp(sub(net, "trunk"), _joined(x, time, state))


def discrete_network(case: Case, t: th.Tensor, condition: th.Tensor, x: th.Tensor) -> th.Tensor:
    net = sub(case, "params/net")
    angle = t * 10000 ** (-th.arange(4) / 3)
    time = mlp(sub(net, "time_mlp"), th.cat([angle.cos(), angle.sin()], -1), activate_last=True)
    return mlp(sub(net, "trunk"), _joined(x, time, condition))


def velocity_network(case: Case, t: th.Tensor, condition: th.Tensor, x: th.Tensor) -> th.Tensor:
    net = sub(case, "params/net")
    angle = 2 * th.pi * t * net["time_embed/freq"].T
    time = mlp(sub(net, "time_mlp"), th.cat([angle.cos(), angle.sin()], -1), activate_last=True)
    return mlp(sub(net, "trunk"), _joined(x, time, condition), activation=F.elu)


def _joined(x: th.Tensor, *parts: th.Tensor) -> th.Tensor:
    """Concatenate features to x, adding the particle axis of x to those that lack it."""
    aligned = [part if part.dim() == x.dim() else part.unsqueeze(-2) for part in parts]
    return th.cat([x, *(part.expand(*x.shape[:-1], part.shape[-1]) for part in aligned)], -1)


class Recorder:
    """A network together with a record of its outputs."""

    def __init__(self, network: Denoise) -> None:
        self.network = network
        self.outputs: list[th.Tensor] = []

    def __call__(self, x: th.Tensor, k: int) -> th.Tensor:
        self.outputs.append(self.network(x, k))
        return self.outputs[-1]


def timed(network, case: Case, sampler: ChainSampler) -> Recorder:  # type: ignore[no-untyped-def]
    """Bind the stored condition, and the time of each evaluation."""
    condition = case["inputs/condition"]
    return Recorder(lambda x, k: network(case, sampler.times[k].expand(len(condition), 1), condition, x))


def check(got: th.Tensor, want: th.Tensor, rtol: float, scale: float = 1.0) -> None:
    close(got, want, rtol, ATOL * scale)


@pytest.mark.parametrize("clip", ["clip", "noclip"])
@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm2", "dpm++2m"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_continuous_chains(schedule: str, solver: str, clip: str) -> None:
    case = CONTINUOUS
    sampler = ContinuousDiffusion(schedule).sampler(5, solver, clip=clip == "clip", **AS_REFERENCE)
    noise = recorded(case, extra={"sample.x_T": case["inputs/x_T"], "sample.step_noise": case["noise/step_noise"]})
    network = timed(continuous_network, case, sampler)
    chain = sampler.chain(network, (4, 2), noise, clip_output=False)
    want = sub(case, f"expected/{schedule}/{solver.replace('++', 'pp')}_{clip}")
    eps = th.stack(network.outputs[:: len(sampler.times) // 5])
    rtol = 5e-4 if (schedule, solver, clip) == ("linear", "dpm2", "clip") else 1e-4
    if clip == "noclip":  # values reach the hundreds
        scale = float(want["x"].abs().max())
        close(chain, want["x"], 0.0, 2e-3 * scale)
        close(eps, want["eps"], 0.0, 2e-3 * scale)
    else:
        check(chain, want["x"], rtol)
        check(eps, want["eps"], rtol)


def test_continuous_chain_on_a_quadratic_grid() -> None:
    case = CONTINUOUS
    sampler = ContinuousDiffusion().sampler(5, "ddpm", power=2.0)
    noise = recorded(case, extra={"sample.x_T": case["inputs/x_T"], "sample.step_noise": case["noise/step_noise"]})
    network = timed(continuous_network, case, sampler)
    check(sampler.chain(network, (4, 2), noise, clip_output=False), case["expected/cosine/ddpm_clip_quadgrid/x"], 1e-4)
    check(th.stack(network.outputs), case["expected/cosine/ddpm_clip_quadgrid/eps"], 1e-4)


def test_continuous_chain_with_several_samples_per_state() -> None:
    case = CONTINUOUS
    sampler = ContinuousDiffusion().sampler(5, "ddpm")
    extra = {"act.x_T": case["inputs/x_T_multi"], "act.step_noise": case["noise/step_noise_multi"]}
    network = timed(continuous_network, case, sampler)
    chain = sampler.chain(network, (4, 3, 2), recorded(case, extra=extra), label="act", clip_output=False)
    check(chain, case["expected/cosine/ddpm_clip_multi/x"], 1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_continuous_forward_noising(schedule: str) -> None:
    case = CONTINUOUS
    process = ContinuousDiffusion(schedule)
    noise = recorded(case)
    t = process.sample_time((4, 1), noise, f"forward_{schedule}_t", like=case["inputs/forward_x0"])
    x_t = process.add_noise(case["inputs/forward_x0"], t, case[f"noise/forward_{schedule}_eps"])
    check(x_t, case[f"expected/{schedule}/forward_x_t"], 1e-4)


@pytest.mark.parametrize(
    ("schedule", "variant"),
    [
        *(("vp", f"{variant}_noclip") for variant in ("ddpm_betavar", "ddpm_exactvar", "ddim")),
        *(
            (name, f"{variant}_clip")
            for name in ("vp", "cosine", "linear")
            for variant in ("ddpm_betavar", "ddpm_exactvar", "ddim")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The .* noise schedule")
def test_discrete_chains(schedule: str, variant: str) -> None:
    case = DISCRETE
    solver = variant.split("_")[0]
    sampler = DiscreteDiffusion(schedule, 5).sampler(
        solver=solver,
        clip=not variant.endswith("noclip"),
        variance="posterior" if "exactvar" in variant else "beta",
        clip_target="state" if solver == "ddim" else "x0",
        **AS_REFERENCE,
    )
    noise = recorded(case, extra={"sample.x_T": case["inputs/x_T"], "sample.step_noise": case["noise/step_noise"]})
    network = timed(discrete_network, case, sampler)
    chain = sampler.chain(network, (4, 2), noise, clip_output=False)
    want = sub(case, f"expected/{schedule}/{variant}")
    rtol = 4e-4 if schedule == "linear" else 1e-4
    scale = float(want["x"].abs().max()) if variant.endswith("noclip") else 1.0
    check(chain, want["x"], rtol, scale)
    check(th.stack(network.outputs), want["eps"], rtol, scale)


def test_discrete_single_step() -> None:
    case = DISCRETE
    process = DiscreteDiffusion("vp", 5)
    noise = recorded(case)
    x0 = case["inputs/onestep_x0"]
    t = process.sample_time((4, 1), noise, "onestep_t", like=x0)
    assert t.dtype == x0.dtype
    x_t = process.add_noise(x0, t, noise.normal((4, 2), "onestep_eps", like=x0))
    check(x_t, case["expected/onestep/x_t"], 1e-4)
    eps = discrete_network(case, t, case["inputs/condition"], x_t)
    check(eps, case["expected/onestep/eps_pred"], 1e-4)
    ddpm = process.reverse_step(x_t, t, eps, noise, "onestep_step_noise", n_samples=3)
    check(ddpm, case["expected/onestep/ddpm/x_prev"], 1e-4)
    ddim = process.reverse_step(x_t, t, eps, noise, "onestep_step_noise", n_samples=3, solver="ddim", clip_target="state")
    check(ddim, case["expected/onestep/ddim/x_prev"], 1e-4)


@pytest.mark.parametrize("clip", ["clip", "noclip"])
def test_euler_flow(clip: str) -> None:
    case = FLOW
    sampler = FlowMatching().sampler(5, "euler", clip=clip == "clip", clip_target="state")
    close(sampler.times, SCHEDULES["expected/cnf/t_grid_T5"], 1e-4, 1e-6)
    network = timed(velocity_network, case, sampler)
    chain = sampler.chain(network, (4, 2), recorded(case, extra={"sample.x_T": case["inputs/x_0"]}), clip_output=False)
    check(chain, case[f"expected/euler_{clip}/x"], 1e-4)
    check(th.stack(network.outputs), case[f"expected/euler_{clip}/velocity"], 1e-4)


def test_flow_interpolation() -> None:
    case = FLOW
    process = FlowMatching()
    t = process.sample_time((4, 1), recorded(case), "interp_t", like=case["inputs/x_0"])
    check(process.add_noise(case["inputs/interp_x1"], t, case["inputs/x_0"]), case["expected/interp/x_t"], 1e-4)
    check(process.regression_target(case["inputs/interp_x1"], case["inputs/x_0"]), case["expected/interp/velocity"], 1e-4)


def test_coupled_flow() -> None:
    case = FLOW
    flow = CoupledFlow(steps=5, mixing=0.9)
    condition = case["inputs/condition"]

    def velocity(x: th.Tensor, k: int) -> th.Tensor:
        return velocity_network(case, flow.times[k].expand(4, 1), condition, x)

    noise = recorded(case, extra={"act.x_T": case["inputs/coupled_x_0"]})
    x1, log_prob = flow.sample(velocity, (4, 4), noise, label="act")
    check(x1, case["expected/coupled/x_1"], 1e-4)
    close(log_prob, case["expected/coupled/log_prob_forward"], 0.0, 1e-4)
    want = case["expected/coupled/x_1"]
    check(flow.inverse(velocity, want), case["expected/coupled/x_0_from_inverse"], 1e-4)
    close(flow.log_prob(velocity, want), case["expected/coupled/log_prob_inverse"], 0.0, 1e-4)
    check(flow.action(x1), case["expected/coupled/env_action"], 1e-4)


def mean_critic(x: th.Tensor) -> th.Tensor:
    inputs = th.cat([LANGEVIN["inputs/condition"], x], -1)
    values = []
    for member in (sub(LANGEVIN, "params/critic/0"), sub(LANGEVIN, "params/critic/1")):
        hidden = mlp(sub(member, "trunk"), inputs, activation=F.elu, activate_last=True)
        values.append(F.linear(hidden, member["head/weight"], member["head/bias"]))
    return th.stack(values).mean(0)


def run_langevin(sampler: Langevin, step_noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    network = Recorder(energy_gradient(mean_critic))
    noise = recorded({}, extra={"sample.step_noise": step_noise})
    chain = sampler.chain(network, (4, 2), noise, clip_output=False, start=LANGEVIN["inputs/x_init"])
    return chain, th.stack(network.outputs)


@pytest.mark.parametrize("clip", ["clip", "noclip"])
@pytest.mark.parametrize("gradient", ["unitgrad", "rawgrad"])
def test_annealed_langevin(gradient: str, clip: str) -> None:
    sampler = Langevin.annealed(
        4,
        2,
        sigma_max=0.5,
        sigma_min=0.05,
        step_size=1e-3,
        gradient_weight=0.7,
        normalize_gradient=gradient == "unitgrad",
        clip=clip == "clip",
    )
    assert sampler.times.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    chain, gradients = run_langevin(sampler, LANGEVIN["noise/annealed"].flatten(0, 1))
    check(chain, LANGEVIN[f"expected/annealed_{gradient}_{clip}/x"], 1e-4)
    check(gradients, LANGEVIN[f"expected/annealed_{gradient}_{clip}/grad"], 1e-4)


@pytest.mark.parametrize("variant", ["ibc_poly", "ibc_exp", "ibc_poly_clipped"])
def test_implicit_behavioural_cloning_langevin(variant: str) -> None:
    sizes = exponential_step_sizes(6, 0.3, 0.7) if variant == "ibc_exp" else polynomial_step_sizes(6, 0.3, 0.01)
    if variant == "ibc_poly_clipped":
        sampler = Langevin.ibc(sizes, noise_scale=0.5, gradient_clip=0.2, step_clip=0.15)
    else:
        sampler = Langevin.ibc(sizes, noise_scale=0.5, clip=False)
    chain, gradients = run_langevin(sampler, LANGEVIN["noise/ibc"])
    check(chain, LANGEVIN[f"expected/{variant}/x"], 1e-4)
    limit = 0.2 if variant == "ibc_poly_clipped" else th.inf  # the stored gradient is the limited one
    check(gradients.clamp(-limit, limit), LANGEVIN[f"expected/{variant}/grad"], 1e-4)


def test_langevin_tables() -> None:
    close(polynomial_step_sizes(6), SCHEDULES["expected/langevin/poly_stepsize_S6"], 1e-4, 1e-6)
    close(exponential_step_sizes(6), SCHEDULES["expected/langevin/exp_stepsize_S6"], 1e-4, 1e-6)
    levels = annealed_levels(5)
    close(levels, SCHEDULES["expected/langevin/annealed_sigmas_L5"], 1e-4, 1e-6)
    close(annealed_step_sizes(levels), SCHEDULES["expected/langevin/annealed_stepsizes_L5"], 1e-4, 1e-6)
