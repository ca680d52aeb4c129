"""iDEM: its target, the distribution that it samples, its bias at the edges, and its numbers beside the reference's."""

import pytest
import torch as th

from sb3_diffusion import iDEM
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from tests.bandits import (
    ActionValue,
    absolute_model,
    bimodal_log_density,
    check_bimodal,
    draw,
    fit,
    flat,
    gaussian_log_density,
    give_critic,
    linear,
    total_variation,
    uniform_batch,
)
from tests.cases import MethodCase
from tests.golden_algorithms import actor_step, check_targets, critic_step, draws, golden_batch, golden_model
from tests.golden_tools import close, load

CASE = MethodCase(
    tiny={"n_particles": 4, "n_action_candidates": 3},
    learns_with={"n_particles": 16, "learning_rate": 0.001},
    operation_counts={"operations": 1113, "kflop": 209, "synchronisations": 0},
)


# -- the target ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_particles", [1, 7])
def test_target_of_a_linear_value(n_particles: int) -> None:
    """All gradients are 2 and the weights sum to 1, so neither the draws nor their number matter."""
    a_t, t = th.tensor([[0.5], [-2.0], [0.1]]), th.tensor([[0.05], [0.6], [0.99]])
    model = absolute_model(iDEM, n_particles=n_particles, clip_target=False)
    give_critic(model, linear)
    alpha, sigma = model.actor.process.coefficients(t)
    batch = uniform_batch(model, 3)
    target, metrics = model.noise_target(batch, a_t, alpha, sigma)
    th.testing.assert_close(target, -2.0 * sigma / alpha)
    assert metrics["q_gradient"].item() == pytest.approx(2.0)
    assert metrics["largest_target"].item() == pytest.approx((2.0 * sigma / alpha).max().item())

    # relative to the mean gradient of 2, a temperature of 0.1 is 0.2
    model.temperature, model.normalize_gradient = 0.1, True
    th.testing.assert_close(model.noise_target(batch, a_t, alpha, sigma)[0], -10.0 * sigma / alpha, rtol=1e-4, atol=1e-4)

    # clipped: the clean action that the target implies is the one that the sampler's clipping would make of it
    model.clip_target = True
    clipped = model.noise_target(batch, a_t, alpha, sigma)[0]
    implied = (a_t - sigma * -10.0 * sigma / alpha) / alpha
    th.testing.assert_close((a_t - sigma * clipped) / alpha, implied.clamp(-1.0, 1.0), rtol=0.0, atol=1e-4)


def test_target_of_a_gaussian_is_its_diffused_score() -> None:
    model = absolute_model(iDEM, n_particles=100_000, clip_target=False)
    give_critic(model, gaussian_log_density(0.3, 0.25))
    model.proposal = "normal"  # the identity holds without a box
    th.manual_seed(0)
    a_t = th.tensor([[0.5]])
    alpha, sigma = model.actor.process.coefficients(th.tensor([[0.3]]))
    exact = sigma * (a_t - 0.3 * alpha) / (alpha.square() * 0.25**2 + sigma.square())
    assert exact.item() == pytest.approx(0.4116, abs=1e-4)
    target, _ = model.noise_target(uniform_batch(model, 1), a_t, alpha, sigma)
    th.testing.assert_close(target, exact, rtol=0.05, atol=0.0)


def test_target_of_a_state_does_not_depend_on_its_batch() -> None:
    """Without the normaliser; a mean over the batch instead of a sum would divide it by the batch size."""
    model = absolute_model(iDEM, n_particles=5, clip_target=False)
    give_critic(model, gaussian_log_density(0.3, 0.25))
    model.randomness = RecordedDraws({"actor.eps_reverse": th.linspace(-0.4, 0.4, 5).unsqueeze(-1)})
    a_t, half = th.linspace(-0.5, 0.5, 8).unsqueeze(-1), th.full((8, 1), 0.5**0.5)
    together, _ = model.noise_target(uniform_batch(model, 8), a_t, half, half)
    for row in range(8):
        alone, _ = model.noise_target(uniform_batch(model, 1), a_t[row : row + 1], half[:1], half[:1])
        th.testing.assert_close(together[row : row + 1], alone)


# -- the distribution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_mass", [0.5, 0.7])
def test_samples_the_boltzmann_distribution_inside_the_box(left_mass: float) -> None:
    model = absolute_model(iDEM, n_particles=16, learning_rate=1e-2)
    give_critic(model, bimodal_log_density(left_mass))
    fit(model, 2000)
    check_bimodal(draw(model), left_mass, distance=0.12, mass_error=0.06)


def limit(model: iDEM, value: ActionValue, n: int = 8000) -> th.Tensor:
    """
    What the method converges to with an exact network and infinitely many particles: samples of the chain that follows
    ``-(sigma / alpha) E[grad Q | a_t]``, with the expectation over the box as a sum over a fine grid.
    """
    edges = th.linspace(-1.0, 1.0, 1001)
    nodes = (0.5 * (edges[1:] + edges[:-1])).unsqueeze(-1).requires_grad_()
    values = value(nodes)
    gradients = th.autograd.grad(values.sum(), nodes)[0].squeeze(-1)
    values, positions = values.detach(), nodes.detach().squeeze(-1)
    chain = model.actor.update_chain
    alphas, sigmas = model.actor.process.coefficients(chain.times)

    def field(x: th.Tensor, k: int) -> th.Tensor:
        alpha, sigma = alphas[k], sigmas[k]
        weights = th.softmax(values - ((x - alpha * positions) / sigma).square() / 2.0, dim=1)
        return -(sigma / alpha) * (weights @ gradients).unsqueeze(-1)

    return chain.sample(field, (n, 1), Randomness(), "limit")


def distance(left: th.Tensor, right: th.Tensor, bins: int = 20) -> float:
    """Total variation between two sets of samples on [-1, 1]."""
    histograms = [th.histc(samples.double(), bins, -1.0, 1.0) / len(samples) for samples in (left, right)]
    return float(0.5 * (histograms[0] - histograms[1]).abs().sum())


@pytest.mark.parametrize(("value", "bias"), [(flat, 0.32), (linear, 0.38)])
def test_actions_pile_up_where_the_density_is_large_at_an_edge(value: ActionValue, bias: float) -> None:
    """The edges' terms that integration by parts drops; SDAC matches both densities."""
    model = absolute_model(iDEM, n_particles=16)
    give_critic(model, value)
    fit(model, 2000)
    samples, expected = draw(model), limit(model, value)
    assert total_variation(expected, value) == pytest.approx(bias, abs=0.03)
    assert distance(samples, expected) <= 0.10
    assert total_variation(samples, value) >= 0.25


def test_limit_is_close_to_the_boltzmann_distribution_inside_the_box() -> None:
    model = absolute_model(iDEM)
    for value in (bimodal_log_density(0.7), gaussian_log_density(0.3, 0.25)):
        assert total_variation(limit(model, value), value) <= 0.09


# -- the reference implementation ----------------------------------------------------------------------------------------


def test_idem() -> None:
    case = load("04_idem")
    # the reference does not clip the target
    model = golden_model(iDEM, case, temperature=0.3, n_particles=5, clip_target=False)
    model.randomness, batch = draws(case), golden_batch(case)
    close(model.target_actions(batch), case["expected/next_action"], atol=2e-5)
    critic_step(model, batch, case)
    # the reference averages the target before the actor's step
    check_targets(model, case)
    a_t, _, alpha, sigma, _ = model.actor.add_noise(batch.actions, model.randomness, "actor")
    close(a_t, case["expected/a_t"])
    target, metrics = model.noise_target(batch, a_t, alpha, sigma)
    close(target, case["expected/eps_target"])
    close(metrics["q_gradient"] + 1e-6, case["expected/scale"])
    close(metrics["largest_target"], case["expected/eps_target"].abs().max())
    loss, _ = model.actor_loss(batch)
    close(loss, case["expected/loss/actor"])
    actor_step(model, loss, case)


def test_idem_differs_from_the_reference_by_the_clipped_target() -> None:
    case = load("04_idem")
    model = golden_model(iDEM, case, temperature=0.3, n_particles=5)
    model.randomness, batch = draws(case), golden_batch(case)
    critic_step(model, batch, case)
    check_targets(model, case)
    a_t, _, alpha, sigma, _ = model.actor.add_noise(batch.actions, model.randomness, "actor")
    target, _ = model.noise_target(batch, a_t, alpha, sigma)
    expected = case["expected/eps_target"]
    close((a_t - sigma * target) / alpha, ((a_t - sigma * expected) / alpha).clamp(-1.0, 1.0), atol=1e-4)
    kept = (target - expected).abs() < 1e-4
    assert kept.any() and not kept.all()
