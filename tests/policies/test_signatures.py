"""Policies hand their common arguments on, and show, know and note all of them nevertheless."""

import inspect
from typing import Any

import pytest

from sb3_diffusion import IQL, QSM, SfBC
from sb3_diffusion.policies.actor_critic import ActorCritic, ActorCriticArguments
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.gaussian import GaussianMlpPolicy, GaussianPolicy
from sb3_diffusion.policies.guided import GuidedMlpPolicy, GuidedPolicy
from tests.helpers import CautiousPolicy, make

POLICIES: list[type[ActorCritic]] = [DiffusionPolicy, GaussianPolicy, GaussianMlpPolicy, GuidedPolicy, GuidedMlpPolicy]


class HandingOnPolicy(DiffusionPolicy, hands_on=True):
    """
    A user's policy that hands on what it does not know.

    :param caution: Factor of the actions
    """

    def __init__(self, *args: Any, caution: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.caution = caution


def names(policy: type[ActorCritic]) -> list[str]:
    return list(inspect.signature(policy).parameters)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_signature_is_complete_and_documented(policy: type[ActorCritic]) -> None:
    shown = inspect.signature(policy).parameters
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in shown.values())
    assert shown.keys() >= set(ActorCriticArguments.__annotations__) and "actor_arguments" not in shown
    manual = "".join(inspect.getdoc(cls) or "" for cls in policy.__mro__ if issubclass(cls, ActorCritic))
    assert [name for name in shown if f":param {name}:" not in manual] == []


def test_what_is_handed_on_is_what_the_parent_takes() -> None:
    own = [name for name in names(DiffusionPolicy) if name in inspect.signature(DiffusionPolicy.__init__).parameters]
    taken = {name: p.annotation for name, p in inspect.signature(ActorCritic).parameters.items() if name not in own}
    assert {"actor_arguments": dict[str, Any], "n_step_draws": int, **ActorCriticArguments.__annotations__} == taken


@pytest.mark.parametrize("algorithm", [QSM, IQL, SfBC])
def test_all_arguments_are_noted(algorithm: Any) -> None:
    policy = make(algorithm, policy_kwargs={"n_critics": 3}).policy
    kind = GaussianPolicy if algorithm is IQL else DiffusionPolicy
    assert list(policy.constructor_arguments) == names(kind)[2:]
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    noted = policy.constructor_arguments
    assert noted["n_critics"] == 3 and noted["particle_precision"] == defaults["particle_precision"] == "float32"
    assert noted["net_arch"] == [16]


def test_a_users_class_has_its_own_signature() -> None:
    assert names(CautiousPolicy) == ["args", "caution", "kwargs"]
    assert names(HandingOnPolicy) == [*names(DiffusionPolicy)[:8], "caution", *names(DiffusionPolicy)[8:]]
    assert make(QSM, policy=HandingOnPolicy, policy_kwargs={"caution": 0.5}).policy.caution == 0.5


@pytest.mark.parametrize("policy", [None, HandingOnPolicy])
def test_an_unknown_argument_is_told_all_known_ones(policy: Any) -> None:
    with pytest.raises(ValueError, match="Unknown policy_kwargs cautoin; ") as refused:
        make(QSM, policy=policy, policy_kwargs={"cautoin": 1})
    told = str(refused.value).partition(" knows ")[2].rstrip(".").split(", ")
    assert told == names(DiffusionPolicy if policy is None else policy)[3:]
