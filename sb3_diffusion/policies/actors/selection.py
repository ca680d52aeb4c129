"""Which of several candidate actions is taken: how values become a choice."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch as th

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.names import check_no_unknown, choice
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.values.critic import REDUCTIONS

RULES = ("argmax", "softmax", "topk_mean", "expectile", "none")


@dataclass(frozen=True)
class Selection:
    """
    How ``deterministic=False`` chooses among candidates. Deterministic actions are the best candidate, or the mean of the best
    for ``"topk_mean"``.

    :param rule: ``"argmax"`` the best one, ``"softmax"`` a draw from ``exp(value / temperature)``, ``"topk_mean"`` the mean of
        the ``top`` best, ``"expectile"`` a draw in which each candidate counts ``expectile`` if its advantage over
        ``baseline`` is positive and ``1 - expectile`` otherwise, ``"none"`` the first, whatever its value (no other is drawn)
    :param temperature: Temperature of ``"softmax"``, in units of Q
    :param top: Number of candidates of which ``"topk_mean"`` takes the mean
    :param expectile: Of the rule of this name
    :param baseline: Name of the policy's value of states that the rule ``"expectile"`` compares with
    :param reduction: What becomes of the values of several critics, ``"min"`` or ``"mean"``; for deterministic actions, too
    :param target: Whether the target critics value the candidates
    :param critics: Which critics do: ``"critic"``, or the name of further ones among the policy's ``networks``
    """

    rule: str = "argmax"
    temperature: float = 1.0
    top: int = 1
    expectile: float = 0.7
    baseline: str = "value"
    reduction: str = "min"
    target: bool = False
    critics: str = "critic"

    def __post_init__(self) -> None:
        choice("selection['rule']", self.rule, RULES)
        real("selection['temperature']", self.temperature, above=0, remedy="rule='argmax' is the limit of 0")
        integer("selection['top']", self.top, low=1)
        real("selection['expectile']", self.expectile, above=0, below=1, remedy="0.5 draws all alike")
        choice("selection['reduction']", self.reduction, REDUCTIONS)

    @classmethod
    def of(cls, spec: "str | dict[str, Any] | Selection") -> "Selection":
        """
        :param spec: Name of a rule, or arguments of this class
        :return: The selection
        :raises TypeError: If an argument is unknown
        """
        if isinstance(spec, Selection):
            return spec
        options = {"rule": spec} if isinstance(spec, str) else dict(spec)
        check_no_unknown(cls, {name: value for name, value in options.items() if name not in cls.__dataclass_fields__})
        return cls(**options)

    def check_networks(self, networks: Collection[str]) -> None:
        """
        :param networks: Names of the networks that a policy has
        :raises ValueError: If the candidates are valued by, or compared with, one that is not among them
        """
        if self.critics != "critic":
            choice("selection['critics']", self.critics, networks)
        if self.rule == "expectile" and self.baseline not in networks:
            raise ValueError(
                f"selection: rule='expectile' compares with the network baseline={self.baseline!r}, which the policy has not; "
                f"known are {', '.join(networks)}."
            )

    def choose(self, candidates: th.Tensor, values: th.Tensor, randomness: Randomness, label: str) -> th.Tensor:
        """
        :param candidates: Actions ``(batch, n_candidates, action_dim)``
        :param values: Their values ``(batch, n_candidates)``; their advantages for ``"expectile"``
        :param randomness: Source of the draw of ``"softmax"`` and ``"expectile"``
        :param label: Prefix of its name
        :return: Actions ``(batch, action_dim)``
        """
        if self.rule == "none":
            return candidates[:, 0]
        if self.rule == "topk_mean":
            best = values.topk(min(self.top, values.shape[1]), dim=1).indices
            return candidates.gather(1, best.unsqueeze(-1).expand(-1, -1, candidates.shape[-1])).mean(1)
        if self.rule in ("softmax", "expectile"):
            # a draw from a softmax is where its logits and Gumbel noise are largest; large values would swallow the noise
            logits = (values - values.amax(1, keepdim=True)) / self.temperature
            if self.rule == "expectile":
                logits = th.where(values > 0.0, math.log(self.expectile), math.log(1.0 - self.expectile))
            values = logits + randomness.gumbel(logits.shape, f"{label}.gumbel", like=logits)
        return best_candidates(candidates, values)


def best_candidates(candidates: th.Tensor, values: th.Tensor) -> th.Tensor:
    """
    The candidate with the largest value in every row.

    :param candidates: Actions ``(batch, n_candidates, action_dim)``
    :param values: Their values ``(batch, n_candidates)``
    :return: Actions ``(batch, action_dim)``
    """
    best = values.argmax(1)[:, None, None].expand(-1, 1, candidates.shape[-1])
    return candidates.gather(1, best).squeeze(1)
