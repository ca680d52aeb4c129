"""FPMD: its flows, their one-step samples and its theorem on bandits."""

import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import DPMD, FPMD
from sb3_diffusion.generative.flow import FlowMatching, MeanFlow, directional_derivative
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from tests.bandits import bandit_model, draw, fit, flat, give_critic, linear, total_variation, uniform_batch
from tests.cases import MethodCase
from tests.core.test_update import COMPILES, assert_same_training
from tests.helpers import act, assert_identical, make, make_filled, observations, parameters
from tests.weighted_matching.test_dpmd import uniform_start

CASE = MethodCase(
    tiny={"n_particles": 4, "target_kl": 0.5, "actor_learning_rate": None, "evaluation_steps": None, "n_action_candidates": 3},
    every_update={"refresh_interval": 1},
    wrong_arguments=[
        ({"variant": "reflow"}, ["'reflow'", "rectified", "meanflow"]),
        ({"evaluation_steps": 0}, ["evaluation_steps=0", "at least 1"]),
        ({"variant": "meanflow", "instantaneous": 1.5}, ["instantaneous=1.5", "between 0 and 1"]),
        ({"target_kl": 5.0}, ["target_kl=5.0", "log(n_particles)"]),
        ({"policy_kwargs": {"process": "continuous"}}, ["'continuous'", "noise", "FPMD", "velocity"]),
        ({"policy_kwargs": {"process": "meanflow"}}, ["'meanflow'", "average velocity", "FPMD"]),
        ({"policy_kwargs": {"solver": "ddpm"}}, ["'ddpm'", "'flow'", "euler", "midpoint", "heun", "rk4"]),
        ({"policy_kwargs": {"noise_schedule": "cosine"}}, ["'cosine'", "'flow'", "leave it out"]),
        ({"variant": "meanflow", "policy_kwargs": {"solver": "rk4"}}, ["'rk4'", "'meanflow'", "euler"]),
        ({"policy_kwargs": {"time_input": "logsnr"}}, ["time_input='logsnr'", "flow", "use 't'"]),
        ({"variant": "meanflow", "policy_kwargs": {"time_input": "logsnr"}}, ["time_input='logsnr'", "flow", "use 't'"]),
    ],
    operation_counts={"operations": 1061, "kflop": 428, "synchronisations": 0},
)

PLAIN: dict[str, Any] = {"particle_noise": 0.0, "temperature_learning_rate": 0.0}


def samples_after(model: FPMD, steps: int, n: int = 8000) -> th.Tensor:
    """Samples of the policy with another number of steps."""
    chain = model.actor.update_chain
    model.actor.update_chain = model.actor.process.sampler(steps, "euler")
    drawn = draw(model, n)
    model.actor.update_chain = chain
    return drawn


def fix_particles(model: FPMD, action: float) -> None:
    """The previous policy knows one action only."""
    model.particles = lambda batch: th.full((len(batch.rewards), model.n_particles, 1), action)  # type: ignore[method-assign]
    give_critic(model, flat)


def end_points(model: FPMD, noise: th.Tensor, steps: int) -> th.Tensor:
    """Where the flow takes given noise ``(n, 1)`` in a number of steps."""
    model.actor.update_chain = model.actor.process.sampler(steps, "euler")
    with th.no_grad():
        return model.actor.sample(model.actor.encode(th.zeros(len(noise), 1)), RecordedDraws({"test.x_T": noise}), "test")


@pytest.mark.parametrize(
    "variant, n_particles, learning_rate, updates", [("rectified", 64, 6e-3, 2000), ("meanflow", 16, 1e-2, 1200)]
)
def test_one_step_reaches_a_constant_action(variant: str, n_particles: int, learning_rate: float, updates: int) -> None:
    model = bandit_model(FPMD, variant=variant, n_particles=n_particles, target_kl=1.0, learning_rate=learning_rate)
    fix_particles(model, 0.4)
    fit(model, updates, batch_size=16)
    # the start of the path far out in the tail of the noise is hardly ever trained; more steps forgive that
    for steps, reach in ((1, 1.5), (20, 3.0)):
        error = (end_points(model, th.linspace(-reach, reach, 41).view(-1, 1), steps) - 0.4).abs().max().item()
        assert error <= 0.02, steps


def test_mirror_descent_with_a_flow_and_what_one_step_costs() -> None:
    model = bandit_model(FPMD, n_particles=64, **PLAIN)
    uniform_start(model)
    give_critic(model, linear)
    fit(model, 1500, batch_size=16)
    samples = draw(model)
    assert total_variation(samples, linear) <= 0.12
    assert samples.mean().item() == pytest.approx(0.54, abs=0.05)
    # one step from noise to data maps all noise to the mean of the policy: right mean, wrong spread
    short = samples_after(model, 1)
    assert total_variation(short, linear) >= 0.3
    assert short.mean().item() == pytest.approx(0.54, abs=0.05) and short.std().item() < 0.1


def test_mean_flow_keeps_the_spread_in_one_step() -> None:
    model = bandit_model(FPMD, variant="meanflow", n_particles=32, **PLAIN)
    uniform_start(model)
    give_critic(model, linear)
    fit(model, 600, batch_size=16)
    assert draw(model).std().item() > 0.3  # exp(2a) has 0.42, its rectified flow below 0.1 in one step


# -- the average velocity ---------------------------------------------------------------------------------------------


class PointMassFlow:
    """The average velocity towards a single action, in closed form, as a denoiser."""

    def __init__(self, action: float, sign: float = 1.0):
        self.action, self.sign = action, sign

    def at_times(self, x: th.Tensor, context: th.Tensor, t: th.Tensor) -> th.Tensor:
        return self(x, context, t)

    def encode_time(self, t: th.Tensor) -> th.Tensor:
        return t

    def __call__(self, x: th.Tensor, context: th.Tensor, t: th.Tensor) -> th.Tensor:
        return self.sign * (self.action - x) / (1.0 - t[..., :1])


def mean_flow_error(denoiser: PointMassFlow, direction: Any = None) -> float:
    model = bandit_model(FPMD, variant="meanflow", n_particles=32, policy_kwargs={"process_kwargs": {"instantaneous": 0.0}})
    fix_particles(model, denoiser.action)
    model.actor.denoiser = None  # a module cannot be replaced by a plain object
    del model.actor.denoiser
    model.actor.denoiser = denoiser
    if direction is not None:
        model.actor.process.time_direction = direction
    model.actor.encode = lambda observations: observations  # type: ignore[method-assign]
    times = th.rand(8, 32, 2, generator=th.Generator().manual_seed(0)) * 0.95
    th.manual_seed(0)
    recorded = {"actor.t": times, "actor.t.instantaneous": th.ones(8, 32, 1), "actor.eps": th.randn(8, 32, 1)}
    model.randomness = RecordedDraws(recorded)
    return float(model.actor_loss(uniform_batch(model, 8))[0])


def test_the_closed_form_of_a_point_mass_has_no_loss() -> None:
    assert mean_flow_error(PointMassFlow(0.4)) <= 1e-6
    assert mean_flow_error(PointMassFlow(0.4, sign=-1.0)) > 0.1


def test_a_wrong_direction_of_time_has_a_loss() -> None:
    # the sign of the first number is what the closed form depends on
    assert mean_flow_error(PointMassFlow(0.4), lambda t: th.stack((-th.ones_like(t[..., 0]), t[..., 1] * 0 - 1), -1)) > 0.1


def test_derivative_along_a_direction() -> None:
    """Forward-mode derivative of the real network beside a central difference in float64."""
    model = bandit_model(FPMD, variant="meanflow", policy_kwargs={"net_arch": [128, 128]})
    actor = model.actor.double()
    generator = th.Generator().manual_seed(0)
    x, t, direction = (th.rand(64, 40, n, generator=generator, dtype=th.float64) for n in (1, 2, 1))
    context = actor.denoiser.encode_state(th.zeros(64, 1, dtype=th.float64)).detach()
    time_direction = MeanFlow.time_direction(t)
    assert time_direction[0, 0].tolist() == [1.0, -1.0]
    for rows in (slice(0, 1), slice(0, 64)):  # small and large tensors take different kernels
        args = x[rows], t[rows], context[rows]
        with th.no_grad():
            network = functools.partial(actor.denoise, context=args[2])
            derivative = directional_derivative(network, args[:2], (direction[rows], time_direction[rows]))
            step = 1e-5
            ahead, behind = (
                actor.denoise(x[rows] + sign * step * direction[rows], t[rows] + sign * step * time_direction[rows], args[2])
                for sign in (1.0, -1.0)
            )
        th.testing.assert_close(derivative, (ahead - behind) / (2.0 * step), rtol=1e-6, atol=1e-7)


def test_target_of_the_average_velocity_by_hand() -> None:
    model = bandit_model(FPMD, variant="meanflow", n_particles=2, target_kl=0.5)
    fix_particles(model, 0.25)
    times = th.tensor([[[0.6, 0.1], [0.3, 0.8]]])
    eps = th.tensor([[[0.5], [-1.0]]])
    instantaneous = th.tensor([[[0.9], [0.1]]])  # the second one is a single time
    model.randomness = RecordedDraws({"actor.t": times, "actor.t.instantaneous": instantaneous, "actor.eps": eps})
    batch = uniform_batch(model, 1)
    particles, context = model.particles(batch), model.actor.encode(batch.observations)
    noisy = model.actor.add_noise(particles, model.randomness, "actor")
    th.testing.assert_close(noisy.t, th.tensor([[[0.1, 0.5], [0.3, 0.0]]]))
    th.testing.assert_close(noisy.x_t, th.tensor([[[0.1 * 0.25 + 0.9 * 0.5], [0.3 * 0.25 - 0.7]]]))
    target = model.regression_target(particles, noisy, context)
    velocity = particles - eps
    step = 1e-3
    shifted = model.actor.denoise(noisy.x_t + step * velocity, noisy.t + step * th.tensor([1.0, -1.0]), context)
    slope = (shifted - model.actor.denoise(noisy.x_t, noisy.t, context)) / step
    th.testing.assert_close(target, velocity + noisy.t[..., 1:] * slope, rtol=1e-2, atol=1e-2)
    th.testing.assert_close(target[0, 1], velocity[0, 1])
    assert not target.requires_grad


# -- the policy -------------------------------------------------------------------------------------------------------


def test_the_flow_runs_from_noise_to_action() -> None:
    process = FlowMatching()
    assert [float(part) for part in process.coefficients(th.tensor(0.2))] == pytest.approx([0.2, 0.8])
    assert process.regression_target(th.tensor(3.0), th.tensor(1.0)) == 2.0
    # a network that is right about the data ends there from any noise, in any number of steps
    for steps in (1, 4):
        for sampler in (process.sampler(steps), MeanFlow().sampler(steps)):
            starts = sampler.times.view(steps, -1)[:, 0].tolist()

            def velocity(x: th.Tensor, k: int, starts: list[float] = starts) -> th.Tensor:
                return (0.4 - x) / (1.0 - starts[k])

            th.testing.assert_close(sampler.sample(velocity, (50, 1), Randomness()), th.full((50, 1), 0.4))
        assert MeanFlow().sampler(steps).times.tolist()[0] == [0.0, 1.0 / steps]


def test_intervals_of_the_mean_flow() -> None:
    t = MeanFlow(0.25).sample_time((40_000, 1), Randomness(th.Generator().manual_seed(0)), "t", th.zeros(()))
    start, length = t.unbind(-1)
    assert bool((start >= 0.0).all()) and bool((length >= 0.0).all()) and bool((start + length <= 1.0).all())
    single = length == 0.0
    assert single.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert start[single].mean().item() == pytest.approx(0.5, abs=0.01)
    assert start[~single].mean().item() == pytest.approx(1 / 3, abs=0.01)
    assert length[~single].mean().item() == pytest.approx(1 / 3, abs=0.01)
    alpha, sigma = MeanFlow().coefficients(t)
    th.testing.assert_close(alpha[:, 0], start)
    th.testing.assert_close(alpha + sigma, th.ones_like(alpha))
    x, u = th.randn(2, 40_000, 3)
    th.testing.assert_close(MeanFlow().predicted_clean(x, t, u), x + (1.0 - start.unsqueeze(-1)) * u)


def test_defaults_of_the_variants() -> None:
    rectified = FPMD("DiffusionPolicy", "Pendulum-v1", buffer_size=1, device="cpu")
    actor = rectified.actor
    assert type(actor.process) is FlowMatching
    assert [len(chain.times) for chain in (actor.update_chain, actor.acting_chain, actor.evaluation_chain)] == [20, 20, 1]
    mean = FPMD("DiffusionPolicy", "Pendulum-v1", variant="meanflow", instantaneous=0.3, buffer_size=1, device="cpu")
    actor = mean.actor
    assert isinstance(actor.process, MeanFlow) and actor.process.instantaneous == 0.3
    assert [len(chain.times) for chain in (actor.update_chain, actor.acting_chain, actor.evaluation_chain)] == [1, 1, 1]


def test_mean_flow_trains_saves_and_loads(tmp_path: Any) -> None:
    model = make(FPMD, variant="meanflow", policy_kwargs={"diffusion_steps": 2}).learn(30)
    model.save(tmp_path / "model")
    loaded = FPMD.load(tmp_path / "model", device="cpu")
    assert loaded.variant == "meanflow" and loaded.prediction == "average velocity"
    assert_identical(loaded.get_parameters(), model.get_parameters())
    obs = observations(model.observation_space)
    np.testing.assert_array_equal(act(loaded, obs), act(model, obs))


@pytest.mark.parametrize("backbone", ["mlp", "residual", "simba", "bronet"])
@pytest.mark.parametrize("activation_fn", ["relu", "elu", "silu", "tanh", "gelu", "mish"])
def test_mean_flow_with_every_network(backbone: str, activation_fn: str) -> None:
    networks = {"backbone": backbone, "activation_fn": activation_fn, "layer_norm": True, "net_arch": [16, 16]}
    model: Any = make_filled(FPMD, variant="meanflow", n_particles=32, policy_kwargs=networks)
    before = parameters(model.actor)
    model.train(2, 16)
    assert not th.equal(before["denoiser.trunk.first.bias"], parameters(model.actor)["denoiser.trunk.first.bias"])


@pytest.mark.expensive
@COMPILES
def test_compiled_mean_flow_equals_the_eager_one() -> None:
    def train(execution: str) -> Any:
        networks = {"diffusion_steps": 2, "net_arch": [8], "state_arch": [4], "time_dim": 4}
        model = make_filled(FPMD, variant="meanflow", execution=execution, refresh_interval=2, policy_kwargs=networks)
        th.manual_seed(1)
        np.random.seed(1)
        model.train(4, 8)
        return model

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        assert_same_training(train("eager"), train("compile"))


def test_the_frame_is_that_of_dpmd() -> None:
    """Only the generative model differs: same particles' weights, temperature and refreshes."""
    assert (
        FPMD.actor_loss is DPMD.actor_loss
        and FPMD.adapt_multipliers is DPMD.adapt_multipliers
        and FPMD.after_update is DPMD.after_update
    )
