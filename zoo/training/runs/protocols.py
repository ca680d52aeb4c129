"""Protocols of evaluation: which actions an agent takes, and where deterministic ones have their noise from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.policies.acting import EVALUATION_NOISE, ActingPolicy

KINDS = {True: "deterministic", False: "stochastic"}


class Protocol(NamedTuple):
    """
    How an agent acts while it is scored.

    :param deterministic: Kind of the actions
    :param noise: Noise of deterministic actions; ``None`` where there is none, or nothing is said of it
    """

    deterministic: bool
    noise: str | None = None

    def __str__(self) -> str:
        kind = KINDS[self.deterministic]
        return kind if self.noise is None else f"{kind}, {self.noise} noise"

    def episodes(self, n: int) -> str:
        """
        :param n: Number of episodes
        :return: The same in words
        """
        return f"{n} {KINDS[self.deterministic]} episodes" + ("" if self.noise is None else f" with {self.noise} noise")

    @contextmanager
    def followed_by(self, model: BaseAlgorithm) -> Iterator[None]:
        """
        Within it, the agent acts so.

        :param model: The agent
        """
        if self.noise is None:
            yield
            return
        policy: Any = model.policy
        with policy.evaluated_with(self.noise):
            yield


def of_deterministic_actions(model: BaseAlgorithm) -> list[Protocol]:
    """
    :param model: An agent
    :return: All protocols of its deterministic actions, the one that it follows by itself first
    """
    policy = model.policy
    if not isinstance(policy, ActingPolicy) or not policy.draws_when_evaluated:
        return [Protocol(True)]
    others = (noise for noise in EVALUATION_NOISE if noise != policy.evaluation_noise)
    return [Protocol(True, noise) for noise in (policy.evaluation_noise, *others)]


def protocol_of(evaluation: Mapping[str, Any]) -> Protocol:
    """
    :param evaluation: An entry of ``results.json``; those of earlier versions say nothing of noise
    :return: How the agent acted
    """
    return Protocol(evaluation["is_deterministic"], evaluation.get("evaluation_noise"))


def choose_noise(model: BaseAlgorithm, noise: str | None) -> None:
    """
    :param model: An agent
    :param noise: Noise of its deterministic actions, ``None`` for its own
    :raises ValueError: If its policy does not know any
    """
    if noise is None:
        return
    if not isinstance(model.policy, ActingPolicy):
        raise ValueError(f"--evaluation-noise {noise}: a policy of {type(model).__name__} has no such noise; leave it out.")
    model.policy.evaluation_noise = noise


def choose_candidates(model: BaseAlgorithm, n: int | None) -> None:
    """
    :param model: An agent
    :param n: Actions of which its critics choose a deterministic one, ``None`` for its own number
    :raises ValueError: If its policy never chooses
    """
    if n is None:
        return
    if not isinstance(model.policy, ActingPolicy):
        raise ValueError(f"--n-action-candidates {n}: a policy of {type(model).__name__} does not choose; leave it out.")
    model.policy.n_action_candidates = n
