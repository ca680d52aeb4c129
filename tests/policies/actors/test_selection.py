"""Which of several candidates is taken."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import QSM
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.policies.actors.selection import Selection
from sb3_diffusion.policies.values.critic import reduce_critics
from tests.helpers import act, make, observations

CANDIDATES = th.arange(4.0).view(1, 4, 1).expand(2, 4, 3)
VALUES = th.tensor([[3.0, 1.0, 4.0, 2.0], [0.0, 5.0, 5.5, 6.0]])


def chosen(rule: Any, values: th.Tensor = VALUES) -> list[float]:
    actions = Selection.of(rule).choose(CANDIDATES, values, Randomness(), "act")
    assert actions.shape == (2, 3)
    th.testing.assert_close(actions[:, 0], actions[:, 2])  # the whole action, though columns of a mean may round differently
    return actions[:, 0].tolist()


def test_rules_without_randomness() -> None:
    assert chosen("argmax") == [2.0, 3.0]
    assert chosen("none") == [0.0, 0.0]
    assert chosen({"rule": "topk_mean", "top": 2}) == pytest.approx([1.0, 2.5])
    assert chosen({"rule": "topk_mean", "top": 99}) == pytest.approx([1.5, 1.5])  # there are no more than four


def test_frequencies_of_a_softmax() -> None:
    """Values 0 and 2: 0.1192 and 0.8808; feeding these probabilities to another softmax would give 0.318 and 0.682."""
    th.manual_seed(0)
    n = 20_000
    candidates = th.tensor([0.0, 1.0]).view(1, 2, 1).expand(n, 2, 1)
    for temperature, expected in ((1.0, 0.8808), (2.0, 0.7311)):
        rule = Selection("softmax", temperature=temperature)
        actions = rule.choose(candidates, th.tensor([0.0, 2.0]).expand(n, 2), Randomness(), "act")
        assert actions.mean().item() == pytest.approx(expected, abs=0.01)


def test_frequencies_of_an_expectile() -> None:
    """Two candidates with an advantage and two without: 0.8 to 0.2, shared among the equal."""
    th.manual_seed(0)
    n = 20_000
    candidates, advantages = th.arange(4.0).view(1, 4, 1).expand(n, 4, 1), th.tensor([3.0, -1.0, 1e-3, 0.0]).expand(n, 4)
    actions = Selection("expectile", expectile=0.8).choose(candidates, advantages, Randomness(), "act")
    shares = th.bincount(actions[:, 0].long(), minlength=4) / n
    th.testing.assert_close(shares, th.tensor([0.4, 0.1, 0.4, 0.1]), rtol=0.0, atol=0.01)


def test_an_expectile_needs_a_value() -> None:
    with pytest.raises(ValueError, match="baseline='value', which the policy has not; known are actor, critic"):
        make(QSM, policy_kwargs={"selection": "expectile"})


def test_large_values_do_not_swallow_the_noise() -> None:
    """Near 1e8 float32 counts in steps of eight, so that Gumbel noise would vanish in the values."""
    th.manual_seed(0)
    n = 4000
    candidates = th.tensor([0.0, 1.0]).view(1, 2, 1).expand(n, 2, 1)
    actions = Selection("softmax").choose(candidates, th.full((n, 2), 1e8), Randomness(), "act")
    assert actions.mean().item() == pytest.approx(0.5, abs=0.05)


def test_gumbel_noise_has_its_mean_and_spread() -> None:
    draw = Randomness(th.Generator().manual_seed(0)).gumbel((100_000,), "g", like=th.empty(()))
    assert draw.mean().item() == pytest.approx(0.5772, abs=0.02) and draw.std().item() == pytest.approx(1.2825, abs=0.02)
    recorded = RecordedDraws({"g": draw})
    assert th.equal(recorded.gumbel((100_000,), "g", like=th.empty(())), draw)


def test_critics_are_reduced() -> None:
    values = th.tensor([[1.0, 4.0], [3.0, 2.0]])
    assert reduce_critics(values).tolist() == [1.0, 2.0] and reduce_critics(values, "mean").tolist() == pytest.approx(
        [2.0, 3.0]
    )


@pytest.mark.parametrize(
    "spec, error, message",
    [
        ("best", ValueError, r"Unknown selection\['rule'\]='best'; known are argmax, softmax"),
        ({"rule": "softmax", "temperature": 0.0}, ValueError, r"selection\['temperature'\]=0.0 must be positive"),
        ({"top": 0}, ValueError, r"selection\['top'\]=0 must be at least 1"),
        ({"reduction": "max"}, ValueError, r"Unknown selection\['reduction'\]='max'"),
        ({"temperatures": 1.0}, TypeError, "has no argument 'temperatures'; did you mean temperature"),
    ],
)
def test_what_cannot_be_a_selection(spec: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(QSM, policy_kwargs={"selection": spec})


def test_a_policy_behaves_by_its_rule() -> None:
    """Greedy behaviour is worth more than the first candidate's; evaluation takes the best whatever the rule."""
    obs = observations(make(QSM).observation_space, 200)
    worth, evaluated = {}, {}
    for rule in ("argmax", "softmax", "none"):
        model = make(QSM, policy_kwargs={"selection": rule, "n_behavior_candidates": 16, "exploration_noise": 0.0})
        th.manual_seed(0)
        actions = th.as_tensor(act(model, obs, deterministic=False))
        with th.no_grad():
            worth[rule] = th.stack(model.critic(th.as_tensor(obs), actions)).amin(0).mean().item()
        evaluated[rule] = act(model, obs).tolist()
    assert worth["argmax"] > worth["softmax"] > worth["none"]
    assert evaluated["argmax"] == evaluated["softmax"] == evaluated["none"]


def test_a_rule_asks_the_critics_that_it_names() -> None:
    """Target critics of the opposite sign, and critics of which the mean and not the minimum counts."""
    obs = observations(make(QSM).observation_space, 50)
    values = {}
    for name, options in {"online": {}, "target": {"target": True}, "mean": {"reduction": "mean"}}.items():
        model = make(QSM, policy_kwargs={"selection": options, "n_behavior_candidates": 16, "exploration_noise": 0.0})
        with th.no_grad():
            for parameter in model.critic_target.ensemble.trunk.output.parameters():
                parameter.neg_()
            th.manual_seed(0)
            actions = th.as_tensor(act(model, obs, deterministic=False))
            q = th.stack(model.critic(th.as_tensor(obs), actions))
        values[name] = q.amin(0).mean().item(), q.mean().item()
    assert values["online"][0] > values["mean"][0] > values["target"][0]
    assert values["mean"][1] > values["online"][1]
