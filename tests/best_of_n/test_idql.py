"""IDQL: imitation and choice, apart and together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import IDQL, load_agent, save_agent
from sb3_diffusion.networks.backbones.mlp import ResidualMLP
from sb3_diffusion.policies.actors.selection import Selection
from tests.cases import MethodCase
from tests.helpers import act, flat_parameters, make, make_filled, observations, part, sample_batch
from tests.lobes import lobe_actions

CASE = MethodCase(
    tiny={"n_action_candidates": 3, "n_behavior_candidates": 2, "actor_decay": "none"},
    tiny_policy={"time_arch": [8]},
    wrong_arguments=[
        ({"expectile": 0.0}, ["expectile=0.0", "in (0, 1)"]),
        ({"behavior": "softmax"}, ["behavior='softmax'", "argmax", "implicit"]),
        ({"clip": "x1"}, ["clip='x1'", "x0", "xt"]),
        ({"actor_tau": 1.5}, ["actor_tau=1.5", "between 0 and 1"]),
        ({"n_behavior_candidates": 0}, ["n_behavior_candidates=0", "at least 1"]),
        ({"weight_decay": -1.0}, ["weight_decay=-1.0", "at least 0"]),
        ({"actor_updates": 0}, ["actor_updates=0", "at least 1"]),
        ({"critic_updates": 0}, ["critic_updates=0", "at least 1"]),
        ({"policy_kwargs": {"acting": "actor"}}, ["acting='actor'", "IDQL requires"]),
        ({"policy_kwargs": {"clip_target": "x1"}}, ["clip_target='x1'", "x0", "state"]),
    ],
    operation_counts={"operations": 713, "kflop": 523, "synchronisations": 0},
)


# -- what the policy is made of -------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers() -> None:
    model = IDQL("DiffusionPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    trunk: Any = model.actor.denoiser.trunk
    blocks: Any = trunk.blocks
    assert isinstance(trunk, ResidualMLP) and len(blocks) == 3
    for block in blocks:  # dropout, norm, 256 -> 1024 -> 256
        assert (block.dropout.share, block.expand.in_features, block.expand.out_features) == (0.1, 256, 1024)
        assert block.norm is not None and block.shortcut is None
    assert model.batch_size == 512 and model.actor.update_chain.steps == 5
    assert model.actor.process.noise_schedule == "vp" and model.policy.n_action_candidates == 64
    assert model.actor.denoiser.time_net.embedding.frequencies.requires_grad
    assert type(model.actor.optimizer) is th.optim.AdamW and model.actor.optimizer.defaults["weight_decay"] == 1e-4
    for network in (model.critic, model.value):
        assert type(network.optimizer) is th.optim.Adam and network.optimizer.defaults["weight_decay"] == 0.0
    assert model.value.norm is not None
    assert [(stage.name, stage.parts) for stage in model.stages()] == [("training", ("value", "actor", "critic"))]


def test_unequal_numbers_of_updates_are_two_stages() -> None:
    model = make(IDQL, critic_updates=1_000, actor_updates=3_000)
    stages = [(stage.name, stage.parts, stage.updates) for stage in model.stages()]
    assert stages == [("critic", ("value", "critic"), 1_000), ("behavior", ("actor",), 3_000)]


@pytest.mark.parametrize("clip", ["x0", "xt"])
def test_what_the_chain_clips(clip: str) -> None:
    model = make(IDQL, clip=clip)
    points: list[th.Tensor] = []
    denoiser = model.policy.actor_target.denoiser
    handle = denoiser.trunk.register_forward_hook(lambda *_: None)  # keeps compiled code out
    evaluate = denoiser.trunk.evaluate

    def exaggerated(i: int, x: th.Tensor, others: th.Tensor) -> th.Tensor:
        points.append(x.clone())
        return 3.0 * evaluate(i, x, others)

    denoiser.trunk.evaluate = exaggerated
    act(model, np.zeros((50, 3), np.float32), deterministic=False)
    handle.remove()
    later = th.stack(points[1:])
    assert (later.abs().amax() <= 1.0) == (clip == "xt") and points[0].abs().amax() > 1.0


# -- learning -------------------------------------------------------------------------------------------------------------


def test_the_actor_imitates_with_the_sum_over_dimensions() -> None:
    model = make_filled(IDQL, policy_kwargs={"dropout": 0.0})
    batch, generator = sample_batch(model), th.get_rng_state()
    noisy = model.actor.add_noise(batch.actions, model.randomness, "actor")
    predicted = model.actor.denoise(noisy.x_t, noisy.t, model.actor.encode(batch.observations))
    th.set_rng_state(generator)
    th.testing.assert_close(model.actor_loss(batch)[0], (predicted - noisy.eps).square().sum(1).mean())


def test_critics_and_actor_never_meet() -> None:
    """Another actor changes neither the losses of critics and value, nor do other critics change the actor's."""
    model = make_filled(IDQL, policy_kwargs={"dropout": 0.0})
    batch = sample_batch(model)

    def losses(*names: str) -> list[float]:
        th.manual_seed(0)
        return [part(model, name).loss(batch)[0].item() for name in names]

    before, imitation = losses("value", "critic"), losses("actor")
    with th.no_grad():
        for parameter in (*model.actor.parameters(), *model.actor_target.parameters()):
            parameter.add_(1.0)
    assert losses("value", "critic") == before and losses("actor") != imitation
    imitation = losses("actor")
    with th.no_grad():
        for network in (model.critic, model.critic_target, model.value):
            for parameter in network.parameters():
                parameter.add_(1.0)
    assert losses("actor") == imitation and losses("value", "critic") != before


def test_the_averaged_actor() -> None:
    """After k updates of an actor that is one everywhere, an average that began at zero is 1 - 0.999^k."""
    model = make(IDQL)
    with th.no_grad():
        for parameter in model.actor.parameters():
            parameter.fill_(1.0)
        for parameter in model.actor_target.parameters():
            parameter.zero_()
    for _ in range(50):
        model.update_targets()
    averaged = flat_parameters(model.actor_target)
    th.testing.assert_close(averaged, th.full_like(averaged, 1.0 - 0.999**50), rtol=1e-4, atol=0.0)


def test_the_average_acts_and_is_published(tmp_path: Path) -> None:
    model = make_filled(IDQL, actor_tau=0.1)
    model.train(5, 8)
    obs = observations(model.observation_space)
    expected = act(model, obs)
    with th.no_grad():
        for parameter in model.actor.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(act(model, obs), expected)
    save_agent(model, tmp_path / "agent.zip", optimizer_state=False)
    np.testing.assert_array_equal(act(load_agent(tmp_path / "agent.zip", device="cpu"), obs), expected)


# -- choosing -------------------------------------------------------------------------------------------------------------


class Lobes:
    """Stands in for an actor that has learned the two lobes."""

    def act(self, observations: th.Tensor, randomness: Any, label: str, n: int | None = None, evaluating: bool = False) -> Any:
        batch = len(observations)
        return lobe_actions(batch) if n is None else lobe_actions(batch * n).view(batch, n, 2)


class Slope:
    """Stands in for critics that know the value ``2 a_x``, which is one or minus one at the centres of the lobes."""

    def encode(self, observations: th.Tensor) -> None:
        return None

    def q(self, actions: th.Tensor, context: None) -> th.Tensor:
        return th.stack((2.0 * actions[..., 0], 2.0 * actions[..., 0] + 3.0))


def share_of_good(n: int, rule: Selection | None = None) -> float:
    """Share of the chosen ones of ``n`` candidates that lie in the better lobe."""
    policy = make(IDQL).policy
    policy._modules["actor_target"] = Lobes()
    th.manual_seed(0)
    with th.no_grad():
        for parameter in policy.value.parameters():
            parameter.zero_()
        actions = policy.select_actions(th.zeros(8000, 3), n, policy.randomness, critic=Slope(), rule=rule)
    return float((actions[:, 0] > 0).float().mean())


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_best_of_n_is_in_the_better_lobe(n: int) -> None:
    """All n candidates have to fall into the worse lobe for it to be chosen: one half to the power of n."""
    assert share_of_good(n) == pytest.approx(1.0 - 0.5**n, abs=0.02)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_the_implicit_policy_draws_good_actions_more_often(expectile: float) -> None:
    """With two candidates, of which none, one or both are good with chances 1/4, 1/2 and 1/4."""
    share = share_of_good(2, Selection("expectile", expectile=expectile))
    assert share == pytest.approx(0.25 + 0.5 * expectile, abs=0.02)


def test_the_implicit_policy_is_the_stochastic_behavior() -> None:
    greedy, implicit = (make(IDQL, behavior=behavior, n_behavior_candidates=8) for behavior in ("argmax", "implicit"))
    obs = observations(greedy.observation_space, 20)
    np.testing.assert_array_equal(act(greedy, obs), act(implicit, obs))
    drawn = []
    for model in (greedy, implicit):
        th.manual_seed(1)
        drawn.append(act(model, obs, deterministic=False))
    assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("value_input_norm", [True, False])
def test_the_layer_norm_of_the_value_is_a_choice(value_input_norm: bool) -> None:
    model = make(IDQL, value_input_norm=value_input_norm)
    norm = part(model, "value").network.norm
    assert (norm is not None) == value_input_norm
