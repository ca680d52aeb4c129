"""``saturated_actions``: how much of what a policy does lies on the edge of the box, of every method that draws actions."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import DACER, DQL, EDP, QSM, DACERv2
from sb3_diffusion.core.reporting.metrics import saturation
from sb3_diffusion.taxonomy import Method
from tests import rollouts
from tests.conftest import OFF_POLICY, ON_POLICY
from tests.helpers import collect, make, make_filled, point_data, sample_batch, with_logger

DRAW_NONE = {"bc", "iql", "idql", "diffusiondice"}
"""Methods that learn from the actions of their data alone."""


def test_share_of_the_coordinates() -> None:
    actions = th.tensor([[1.0, -0.995, 0.989], [0.0, -3.0, float("nan")]], requires_grad=True)
    share = saturation(actions)["saturated_actions"]
    assert share.item() == pytest.approx(0.5) and not share.requires_grad and share.shape == ()


@pytest.mark.parametrize("method", [*OFF_POLICY, *ON_POLICY], ids=lambda method: method.zoo_name)
def test_every_method_that_draws_actions_tells(method: Method) -> None:
    algorithm: Any = method.load()
    if method in ON_POLICY:
        model = rollouts.make(algorithm)
        model.learn(rollouts.ROLLOUT)
        expected = saturation(model.rollout_buffer["actions"])["saturated_actions"].item()
        assert model.logger.name_to_value["train/saturated_actions"] == pytest.approx(expected)
        return
    model = with_logger(collect(make(algorithm)))
    model.train(4, batch_size=8)
    share = model.logger.name_to_value.get("train/saturated_actions")
    if method.zoo_name in DRAW_NONE:
        assert share is None
    else:
        assert 0.0 <= share <= 1.0


def test_data_tell_as_experience_does() -> None:
    model = make(DQL, dataset=point_data(), with_env=False)
    model.learn_offline(4, log_interval=2)
    assert 0.0 <= model.logger.name_to_value["train/saturated_actions"] <= 1.0
    model = with_logger(collect(make(EDP, mode="iql")))  # whose critics bootstrap from a value of states
    model.train(1, batch_size=8)
    assert "train/saturated_actions" not in model.logger.name_to_value


@pytest.mark.parametrize("algorithm", [DACER, DACERv2, QSM])
def test_it_is_the_share_of_what_the_update_draws(algorithm: Any) -> None:
    model = make_filled(algorithm, policy_kwargs={"output_gain": 0.5})
    batch = sample_batch(model)
    th.manual_seed(3)
    _, metrics = model.critic_loss(batch) if algorithm is QSM else model.actor_loss(batch)
    th.manual_seed(3)
    with th.no_grad():
        if algorithm is QSM:
            actions = model.target_actions(batch)
        else:
            context = model.actor.encode(batch.observations)
            actions = model.actor.sample(context, model.randomness, "actor", clip_output=False)
    assert metrics["saturated_actions"] == saturation(actions)["saturated_actions"]
    assert 0.0 < metrics["saturated_actions"] < 1.0
    if algorithm is not QSM:
        assert 0.0 < metrics["clipped_gradients"] < 1.0


@pytest.mark.parametrize(
    ("policy_kwargs", "tells"),
    [({}, True), ({"solver": "ddim"}, True), ({"clip_target": "none"}, True), ({"solver": "dpm++2m"}, False)],
)
def test_clipped_gradients_of_other_chains(policy_kwargs: dict[str, Any], tells: bool) -> None:
    for algorithm in (DACER, DACERv2):
        model = make_filled(algorithm, policy_kwargs=policy_kwargs)
        _, metrics = model.actor_loss(sample_batch(model))
        assert ("clipped_gradients" in metrics) == tells
        if "clip_target" in policy_kwargs:
            assert metrics["clipped_gradients"] == 0.0


@pytest.mark.expensive
def test_compiled_losses_tell_the_same() -> None:
    numbers = []
    for execution in ("eager", "compile"):
        model = with_logger(make_filled(DACER, execution=execution, policy_kwargs={"diffusion_steps": 2}))
        model.train(2, batch_size=8)
        names = ("saturated_actions", "clipped_gradients", "actor_loss")
        numbers.append([model.logger.name_to_value[f"train/{name}"] for name in names])
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
