"""Which of several candidate actions is taken: how values become a choice."""

from dataclasses import dataclass
from typing import Any

import torch as th

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.names import check_no_unknown, choice
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.critic import REDUCTIONS

RULES = ("argmax", "softmax", "topk_mean", "none")


@dataclass(frozen=True)
class Selection:
    """
    How ``deterministic=False`` chooses among candidates; deterministic actions are always the best candidate.

    :param rule: ``"argmax"`` the best one, ``"softmax"`` a draw from ``exp(value / temperature)``, ``"topk_mean"`` the mean of
        the ``top`` best, ``"none"`` the first, whatever its value (no other is drawn)
    :param temperature: Temperature of ``"softmax"``, in units of Q
    :param top: Number of candidates of which ``"topk_mean"`` takes the mean
    :param reduction: What becomes of the values of several critics, ``"min"`` or ``"mean"``; for deterministic actions, too
    :param target: Whether the target critics value the candidates
    """

    rule: str = "argmax"
    temperature: float = 1.0
    top: int = 1
    reduction: str = "min"
    target: bool = False

    def __post_init__(self) -> None:
        choice("selection['rule']", self.rule, RULES)
        real("selection['temperature']", self.temperature, above=0, remedy="rule='argmax' is the limit of 0")
        integer("selection['top']", self.top, low=1)
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

    def choose(self, candidates: th.Tensor, values: th.Tensor, randomness: Randomness, label: str) -> th.Tensor:
        """
        :param candidates: Actions ``(batch, n_candidates, action_dim)``
        :param values: Their values ``(batch, n_candidates)``
        :param randomness: Source of the draw of ``"softmax"``
        :param label: Prefix of its name
        :return: Actions ``(batch, action_dim)``
        """
        if self.rule == "none":
            return candidates[:, 0]
        if self.rule == "topk_mean":
            best = values.topk(min(self.top, values.shape[1]), dim=1).indices
            return candidates.gather(1, best.unsqueeze(-1).expand(-1, -1, candidates.shape[-1])).mean(1)
        if self.rule == "softmax":
            # a draw from a softmax is where its logits and Gumbel noise are largest; large values would swallow the noise
            logits = (values - values.amax(1, keepdim=True)) / self.temperature
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
