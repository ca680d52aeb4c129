"""DPPO: its numbers beside those of the reference, and densities that are those of the chains that were drawn."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import DPPO
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.envs.tensor.tasks.pendulum import Pendulum
from tests.bandits import BanditEnv
from tests.cases import MethodCase
from tests.golden_algorithms import check_gradients
from tests.golden_rollouts import CODE, PAPER, check_epoch, golden_model, golden_rollout, slots_of
from tests.golden_tools import Case, close, load, recorded, sub
from tests.golden_weights import read_slots

CASE = MethodCase(
    wrong_arguments=[
        ({"gamma_denoising": 1.5}, ["gamma_denoising=1.5", "between 0 and 1"]),
        ({"min_std": 0.0}, ["min_std=0.0", "no density"]),
        ({"min_sampling_std": -0.1}, ["min_sampling_std=-0.1", "at least 0"]),
        ({"log_prob_reduction": "max"}, ["log_prob_reduction='max'", "sum, mean"]),
        ({"log_prob_limit": "all"}, ["log_prob_limit='all'", "dimension, sum, none"]),
        ({"clip_range_base": 0.0}, ["clip_range_base=0.0", "positive"]),
        ({"policy_kwargs": {"solver": "ddim"}}, ["solver='ddim'", "DPPO"]),
        ({"policy_kwargs": {"sampler_kwargs": {"min_std": 0.5}}}, ["sampler_kwargs", "DPPO"]),
        ({"policy_kwargs": {"process": "flow"}}, ["'flow'"]),
    ],
    operation_counts={"operations": 867, "kflop": 121, "synchronisations": 1},
)
REFERENCE: dict[str, Any] = {
    "gamma_denoising": 0.9,
    "min_sampling_std": 0.0,
    "log_prob_limit": "sum",
}
TINY = {"net_arch": [16], "diffusion_steps": 4, "time_dim": 8}


def golden_dppo(name: str, **rules: Any) -> tuple[Any, Case]:
    case = load(name)
    paper = name.endswith("paper")
    policy_kwargs: dict[str, Any] = {
        "process": "continuous",
        "variance": "beta",
        "diffusion_steps": 5,
        "time_embedding": "fourier",
        "time_dim": 8,
        "state_arch": [16, 16] if paper else [128, 128],
        "activation_fn": {"pi": "mish", "qf": "mish" if paper else "elu"},
    }
    extra = {"mask_timeouts": False, "normalize_advantage": "minibatch"} if paper else {}
    settings = {**REFERENCE, "clip_density": False, **(PAPER if paper else CODE), **extra, **rules}
    model = golden_model(DPPO, case, policy_kwargs=policy_kwargs, **settings)
    golden_rollout(model, case, {"chain": "action_chains"})
    buffer = model.rollout_buffer
    with th.no_grad():
        log_prob = model.step_log_prob(buffer.flat("observations"), buffer.fields["chain"].flatten(0, 1))
    buffer.fields["log_prob"] = log_prob.view(5, 4, 5)
    return model, case


@pytest.mark.parametrize("name", ["06_dppo", "06_dppo_paper"])
def test_an_epoch_beside_the_reference(name: str) -> None:
    model, case = golden_dppo(name)
    close(model.rollout_buffer.fields["log_prob"].flatten(0, 1), case["expected/old_step_log_prob"])

    def look(number: int, batch: RolloutBatch, metrics: Metrics) -> None:
        want = sub(case, f"expected/minibatch{number}")
        log_prob = model.step_log_prob(batch.observations, batch.fields["chain"])
        close(log_prob, want["step_log_prob"])
        close((log_prob - batch.fields["log_prob"]).exp(), want["ratio"])
        if "advantage_normalized" in want:
            close(model.advantages(batch), want["advantage_normalized"].squeeze(-1))

    check_epoch(model, case, look)


def test_a_density_that_clips_as_the_sampler_does_is_the_corrected_one() -> None:
    model, case = golden_dppo("06_dppo", clip_density=True)
    close(model.rollout_buffer.fields["log_prob"].flatten(0, 1), case["expected_fixed/old_step_log_prob"])
    loss, _ = model.actor_loss(model.rollout_buffer.rows(case["noise/minibatch_index"][0].long()))
    close(loss, case["expected_fixed/minibatch0/loss/policy"])
    loss.backward()
    check_gradients(read_slots(slots_of(model, "actor"), gradients=True), sub(case, "expected_fixed/minibatch0/grads/actor"))


@pytest.mark.parametrize("name", ["06_dppo", "06_dppo_paper"])
def test_a_chain_beside_the_reference(name: str) -> None:
    model, case = golden_dppo(name)
    model.randomness = recorded(case)
    with th.no_grad():
        actions, fields = model.act(case["batch/obs"][0])
        log_prob = model.step_log_prob(case["batch/obs"][0], fields["chain"])
    close(fields["chain"], case["expected/act/chain"])
    close(actions, case["expected/act/chain"][:, -1])
    close(log_prob.mean(1, keepdim=True), case["expected/act/mean_log_prob"])


@pytest.fixture(scope="module")
def bandit() -> Any:
    return DPPO("DiffusionPolicy", BanditEnv(action_dim=2), seed=0, policy_kwargs=TINY, device="cpu")


def chains(model: Any, n: int) -> tuple[th.Tensor, th.Tensor]:
    observations = th.zeros(n, *model.observation_space.shape)
    with th.no_grad():
        return observations, model.act(observations)[1]["chain"]


def residuals(model: Any, observations: th.Tensor, chain: th.Tensor) -> th.Tensor:
    """Where the steps went, in standard deviations of their densities; ``(n, T, action_dim)``."""
    with th.no_grad():
        means = model.density.means(chain[:, :-1], model._predictions(observations, chain))
    return (chain[:, 1:] - means) / model.density.step_std.unsqueeze(-1)  # type: ignore[no-any-return]


def test_chains_have_the_densities_that_are_learned_with(bandit: Any) -> None:
    z = residuals(bandit, *chains(bandit, 50_000))
    std, mean = th.std_mean(z, dim=0)
    assert mean.abs().max() < 0.02
    assert (std - 1.0).abs().max() < 0.01


def test_the_references_chains_have_other_densities() -> None:
    rules: dict[str, Any] = {"min_sampling_std": 0.0, "clip_density": False}
    model: Any = DPPO("DiffusionPolicy", BanditEnv(action_dim=2), seed=0, policy_kwargs=TINY, device="cpu", **rules)
    std, _ = th.std_mean(residuals(model, *chains(model, 5_000)), dim=0)
    assert (std - 1.0).abs().max() > 0.5


@pytest.mark.parametrize("action_dim", [2, 8, 21])
def test_hardly_any_step_is_without_a_gradient(action_dim: int) -> None:
    shares = {}
    for limit in ("dimension", "sum"):
        model: Any = DPPO(
            "DiffusionPolicy",
            BanditEnv(action_dim=action_dim),
            seed=0,
            policy_kwargs={**TINY, "diffusion_steps": 10, "clip_target": "none"},  # which is not what is looked at here
            log_prob_limit=limit,
            device="cpu",
        )
        observations, chain = chains(model, 500)
        means: list[Any] = []
        original = model.density.means

        def noted(*args: Any, of: Any = original, to: Any = means) -> th.Tensor:
            to.append(of(*args).detach().requires_grad_())
            return to[-1]  # type: ignore[no-any-return]

        model.density.means = noted
        model.step_log_prob(observations, chain).sum().backward()
        shares[limit] = float((means[0].grad.abs().sum(-1) > 0).float().mean())
    assert shares["dimension"] > 0.95
    assert shares["sum"] < shares["dimension"]
    if action_dim == 21:
        assert shares["sum"] < 0.5


def test_without_a_future_of_denoising_only_the_last_step_learns() -> None:
    model: Any = DPPO("DiffusionPolicy", Pendulum(8), n_steps=4, seed=0, gamma_denoising=0.0, policy_kwargs=TINY, device="cpu")
    assert model.step_weights.tolist() == [0.0, 0.0, 0.0, 1.0]
    model.learn(32)
    batch = model.rollout_buffer.rows(slice(None))
    earlier: Any = batch.fields["chain"].clone().requires_grad_()
    loss, _ = model.actor_loss(batch._replace(fields={**batch.fields, "chain": earlier}))
    loss.backward()
    moved = earlier.grad.abs().sum((0, 2))
    assert moved[:3].max() == 0.0 and moved[3:].min() > 0.0


def test_the_first_minibatch_sees_the_policy_that_acted() -> None:
    model: Any = DPPO("DiffusionPolicy", Pendulum(8), n_steps=6, seed=0, learning_rate=1e-2, policy_kwargs=TINY, device="cpu")
    for _ in range(3):  # the statistics of observations have moved in between
        model.learn(48, reset_num_timesteps=False)
        model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer)
        model.policy.set_training_mode(True)
        batch = model.rollout_buffer.rows(slice(None))
        log_prob = model.step_log_prob(batch.observations, batch.fields["chain"])
        close((log_prob - batch.fields["log_prob"]).exp(), th.ones(48, 4), atol=1e-6)


def test_ranges_grow_towards_the_clean_action() -> None:
    model: Any = DPPO("DiffusionPolicy", Pendulum(2), policy_kwargs=TINY, clip_range_base=0.01, device="cpu")
    model.clip.fill_(0.2)
    ranges = model.step_clip_range()
    close(ranges[[0, -1]], th.tensor([0.01, 0.2]))
    assert (ranges.diff() > 0).all() and (ranges.diff().diff() > 0).all()


def test_what_is_explored_is_what_is_recorded(bandit: Any) -> None:
    observations = th.zeros(20_000, *bandit.observation_space.shape)
    with th.no_grad():
        explored = bandit.policy.explore(observations)
        recorded_actions = bandit.act(observations)[0].clamp(-1.0, 1.0)
    close(explored.mean(0), recorded_actions.mean(0), atol=0.03)
    close(explored.std(0), recorded_actions.std(0), atol=0.03)


def test_a_chain_takes_the_memory_that_it_needs() -> None:
    model: Any = DPPO("DiffusionPolicy", Pendulum(16), n_steps=3, policy_kwargs=TINY, device="cpu")
    model.learn(48)
    chain = model.rollout_buffer.fields["chain"]
    assert chain.shape == (3, 16, 5, 1)
    assert chain.untyped_storage().nbytes() == 3 * 16 * 5 * 1 * 4
