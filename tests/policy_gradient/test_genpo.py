"""GenPO: its numbers beside those of the reference, an exact density, and doubled actions that nobody sees."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import FQL, GenPO
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.envs.tensor.tasks.pendulum import Pendulum
from sb3_diffusion.generative.coupled_flow import CoupledFlow
from sb3_diffusion.generative.randomness import RecordedDraws
from tests.bandits import BanditEnv
from tests.cases import MethodCase
from tests.golden_rollouts import CODE, PAPER, check_epoch, golden_model, golden_rollout
from tests.golden_tools import Case, close, load, sub

CASE = MethodCase(
    tiny={"desired_kl": None},
    wrong_arguments=[
        ({"mixing": 0.5}, ["mixing=0.5 must be in (0.5, 1]", "never mixes"]),
        ({"ent_coef": -1.0}, ["ent_coef=-1.0", "at least 0"]),
        ({"compression_coef": -0.1}, ["compression_coef=-0.1", "at least 0"]),
        ({"executed": "second"}, ["executed='second'", "mean, first"]),
        ({"policy_kwargs": {"process": "flow"}}, ["process='flow'", "GenPO"]),
        ({"policy_kwargs": {"solver": "heun"}}, ["solver='heun'", "coupled"]),
        ({"policy_kwargs": {"noise_schedule": "cosine"}}, ["noise_schedule='cosine'", "coupled"]),
        ({"policy_kwargs": {"time_input": "logsnr"}}, ["logsnr", "'t'"]),
        ({"policy_kwargs": {"sampler_kwargs": {"executed": "first"}}}, ["sampler_kwargs", "GenPO"]),
        ({"policy_kwargs": {"exploration_noise": 0.5}}, ["exploration_noise=0.5", "requires"]),
    ],
    operation_counts={"operations": 2151, "kflop": 253, "synchronisations": 1},
)
TINY = {"net_arch": [16], "diffusion_steps": 4, "time_dim": 8}


def halves(noise: th.Tensor) -> th.Tensor:
    """``(n, 2 * action_dim)`` as our sampler draws it."""
    return th.stack(noise.chunk(2, dim=-1))


def golden_genpo(name: str) -> tuple[Any, Case]:
    case, paper = load(name), name.endswith("paper")
    rules: dict[str, Any] = {**PAPER, "desired_kl": None, "executed": "first"} if paper else {**CODE, "desired_kl": 0.01}
    sizes = {"diffusion_steps": 3, "time_dim": 8}
    weights = {"mixing": 0.9, "ent_coef": 0.01, "compression_coef": 0.1}
    model = golden_model(GenPO, case, policy_kwargs=sizes, **weights, **rules)
    golden_rollout(model, case, {"doubled": "aug_action", "log_prob": "old_log_prob"})
    fields = model.rollout_buffer.fields
    fields["log_prob"] = fields["log_prob"].squeeze(-1)
    return model, case


@pytest.mark.parametrize("name", ["06_genpo", "06_genpo_paper"])
def test_an_epoch_beside_the_reference(name: str) -> None:
    model, case = golden_genpo(name)
    draws = [RecordedDraws({"compress.x_T": halves(noise)}) for noise in case["noise/compress_x_0"]]
    model.randomness = draws[0]
    seen: list[Metrics] = []

    def look(number: int, batch: RolloutBatch, metrics: Metrics) -> None:
        want = sub(case, f"expected/minibatch{number}")
        log_prob = model.remember(batch)["log_prob"]
        close(log_prob, want["log_prob"].squeeze(-1), rtol=0.0, atol=1e-4)
        close((log_prob - batch.fields["log_prob"]).exp(), want["ratio"].squeeze(-1))
        close(0.01 * metrics["log_prob"], want["loss/entropy"])
        close(0.1 * metrics["distance_of_halves"], want["loss/compress"])
        close(model.actor_loss(batch)[0], want["loss/actor_total"])
        if seen and model.desired_kl:  # the reference adapts the rates behind the step
            close(metrics["approx_kl"], want["kl"])
            model._adapt_learning_rates(seen[0])
            rate = case["expected/minibatch0/lr_after"]
            assert [part.optimizer.param_groups[0]["lr"] for part in model.parts()] == pytest.approx([float(rate)] * 2)
        seen.append(metrics)
        model.randomness = draws[-1]

    check_epoch(model, case, look, adapted_late=True)
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["06_genpo", "06_genpo_paper"])
def test_actions_beside_the_reference(name: str) -> None:
    model, case = golden_genpo(name)
    observations = case["batch/obs"][0]
    model.randomness = RecordedDraws({"act.x_T": halves(case["noise/act.x_0"])})
    with th.no_grad():
        actions, fields = model.act(observations)
        log_prob = model.remember(model.rollout_buffer.rows(slice(0, 4))._replace(fields=fields))["log_prob"]
    close(actions, case["expected/act/action"])
    close(fields["doubled"], case["expected/act/aug_action"])
    close(log_prob, case["expected/act/log_prob"].squeeze(-1), rtol=0.0, atol=1e-4)
    evaluated, _ = model.policy.predict(observations.numpy(), deterministic=True)
    close(th.from_numpy(evaluated), case["expected/act_deterministic/action"].clamp(-1.0, 1.0))


def rows(observations: th.Tensor, fields: dict[str, th.Tensor]) -> RolloutBatch:
    """Rows of which nothing but these is asked."""
    none = th.zeros(len(observations))
    return RolloutBatch(observations, none, none, none, none, none.bool(), fields)


def trained(**kwargs: Any) -> Any:
    return GenPO(
        "DiffusionPolicy",
        Pendulum(32),
        n_steps=8,
        seed=0,
        learning_rate=1e-2,
        policy_kwargs={**TINY, **kwargs.pop("policy_kwargs", {})},
        device="cpu",
        **kwargs,
    )


@pytest.fixture(scope="module")
def model() -> Any:
    """A model of one dimension that has been trained until its density is no Gaussian."""
    return trained().learn(32 * 8 * 10)


def test_a_density_is_that_of_the_jacobian(model: Any) -> None:
    actor, flow = model.actor, model.sampler.flow
    state = {name: value.double() for name, value in actor.denoiser.state_dict().items()}
    network = actor.denoiser.double()
    try:
        velocity = network.bind(network.encode_state(th.tensor([[0.3, -0.2, 0.5]], dtype=th.float64)), _times(actor))
        x0 = th.tensor([[0.7, -1.1]], dtype=th.float64)
        doubled = flow(velocity, x0)
        jacobian = th.autograd.functional.jacobian(lambda x: flow(velocity, x), x0).view(2, 2)
        normal = -0.5 * float(x0.square().sum()) - math.log(2.0 * math.pi)
        by_autograd = normal - float(th.linalg.slogdet(jacobian).logabsdet)
        assert float(flow.log_prob(velocity, doubled).detach()) == pytest.approx(by_autograd, abs=1e-9)
        close(flow.inverse(velocity, doubled), x0, 0.0, 1e-9)
    finally:
        actor.denoiser.float().load_state_dict(state)


def _times(actor: Any) -> th.Tensor:
    return actor.encode_time(actor.acting_chain.times.double().unsqueeze(-1))  # type: ignore[no-any-return]


@th.no_grad()
def test_a_density_integrates_to_one(model: Any) -> None:
    axis = th.linspace(-9.0, 9.0, 361)
    grid = th.cartesian_prod(axis, axis)
    area = float(axis[1] - axis[0]) ** 2
    log_prob = model.remember(rows(th.zeros(len(grid), 3), {"doubled": grid}))["log_prob"]
    assert float(log_prob.exp().sum()) * area == pytest.approx(1.0, abs=0.01)


@th.no_grad()
def test_noise_is_found_again_after_training(model: Any) -> None:
    sampler, observations = model.sampler, th.randn(256, 3, generator=th.Generator().manual_seed(1))
    velocity = model.actor.bind(model.actor.encode(observations), sampler.times)
    x0 = th.randn(256, 2, generator=th.Generator().manual_seed(0))
    close(sampler.flow.inverse(velocity, sampler.flow(velocity, x0)), x0, 0.0, 1e-4)


@th.no_grad()
def test_the_entropy_of_doubled_actions_is_the_same_for_every_policy(model: Any) -> None:
    entropy = math.log(2.0 * math.pi * math.e) + 2 * 4 * math.log(0.95)
    for policy in (model, trained(policy_kwargs={"output_gain": 2.0})):
        observations = th.zeros(20_000, 3)
        _, fields = policy.act(observations)
        log_prob = policy.remember(rows(observations, fields))["log_prob"]
        assert float(-log_prob.mean()) == pytest.approx(entropy, abs=4.0 / 20_000**0.5)


@th.no_grad()
def test_certain_actions_have_halves_apart(model: Any) -> None:
    """The product of the spreads of mean and difference of the halves has a lower bound, which is tight without a velocity."""
    observations = th.zeros(50_000, 3)
    for policy in (model, trained(policy_kwargs={"output_gain": 0.0})):
        z, y = policy.act(observations)[1]["doubled"].chunk(2, dim=-1)
        product = float(((z + y) / 2).std() * (z - y).std())
        assert product > 0.99 * 0.95 ** (2 * 4)
    assert product == pytest.approx(0.95 ** (2 * 4), rel=0.02)


def test_the_first_minibatch_sees_the_policy_that_acted() -> None:
    model = trained()
    for _ in range(3):  # the statistics of observations have moved in between
        model.learn(256, reset_num_timesteps=False)
        model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer)
        model.policy.set_training_mode(True)
        batch = model.rollout_buffer.rows(slice(None))
        close((model.remember(batch)["log_prob"] - batch.fields["log_prob"]).exp(), th.ones(256), atol=1e-4)
        _, metrics = model.actor_loss(batch)
        assert abs(float(metrics["approx_kl"])) < 1e-5
        assert float(metrics["clip_fraction"]) == 0.0


@pytest.mark.parametrize("executed", ["mean", "first"])
def test_what_is_executed(executed: str) -> None:
    env = BanditEnv(action_dim=2)
    model: Any = GenPO("DiffusionPolicy", env, seed=0, executed=executed, policy_kwargs=TINY, device="cpu")
    observations = th.randn(64, *model.observation_space.shape, generator=th.Generator().manual_seed(0))
    with th.no_grad():
        actions, fields = model.act(observations)
        velocity = model.actor.bind(model.actor.encode(observations), model.sampler.times)
        silent = model.sampler.flow(velocity, th.zeros(64, 4))
    z, y = fields["doubled"].chunk(2, dim=-1)
    close(actions, z if executed == "first" else (z + y) / 2, 0.0, 0.0)
    assert (z - y).abs().max() > 0.1
    first = silent[:, :2] if executed == "first" else CoupledFlow.action(silent)
    evaluated, _ = model.predict(observations.numpy(), deterministic=True)
    assert evaluated.shape == (64, 2)
    np.testing.assert_allclose(evaluated, first.clamp(-1.0, 1.0), atol=1e-5)


def test_the_distance_of_the_halves_is_drawn_down() -> None:
    distances = {}
    for weight in (0.0, 3.0):
        model = trained(compression_coef=weight, desired_kl=None).learn(32 * 8 * 12)
        with th.no_grad():
            z, y = model.act(th.zeros(2000, 3))[1]["doubled"].chunk(2, dim=-1)
        distances[weight] = float((z - y).abs().mean())
        assert ("train/distance_of_halves" in model.logger.name_to_value) == (weight > 0)
    assert distances[3.0] < 0.8 * distances[0.0]


def test_rates_are_adapted_by_default() -> None:
    model = trained(policy_kwargs={"output_gain": 1.0}).learn(32 * 8 * 3)
    rates = [float(part.optimizer.param_groups[0]["lr"]) for part in model.parts()]
    assert model.desired_kl == 0.01 and rates[0] != 1e-2 and all(1e-5 <= rate <= 1e-2 for rate in rates)


def test_other_methods_refuse_doubled_actions() -> None:
    with pytest.raises(ValueError, match=r"process='coupled' has a network of coupled velocity.*FQL"):
        FQL("DiffusionPolicy", BanditEnv(), policy_kwargs={"process": "coupled"}, device="cpu")


def test_settings_of_others() -> None:
    paper, code = GenPO.preset("flowrl_paper"), GenPO.preset("flowrl_code")
    assert (paper["mixing"], paper["executed"], paper["ent_coef"], paper["n_epochs"]) == (0.9, "first", 0.002, 4)
    model = GenPO("DiffusionPolicy", Pendulum(2), device="cpu", **code)
    assert (model.mixing, model.desired_kl, model.clip_range_vf, model.sampler.steps) == (0.95, 0.01, 0.2, 5)
    GenPO("DiffusionPolicy", Pendulum(2), device="cpu", **paper)
