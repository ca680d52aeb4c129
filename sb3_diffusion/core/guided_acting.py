"""Methods whose actions are guided when they are asked for."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typing_extensions import override

from sb3_diffusion.core.algorithm import DiffusionAlgorithm
from sb3_diffusion.policies.guided import GuidedPolicy, check_scale


class GuidanceScale:
    """
    The attribute ``guidance_scale`` of an algorithm: that of its policy, as soon as there is one. Either may be assigned, and
    files keep the last one.
    """

    def __get__(self, model: DiffusionAlgorithm | None, owner: type | None = None) -> Any:
        if model is None:
            return self
        attributes = vars(model)
        policy = attributes.get("policy")
        if isinstance(policy, GuidedPolicy):
            return policy.guidance_scale
        try:
            return attributes["guidance_scale"]
        except KeyError:
            raise AttributeError(f"{type(model).__name__} has no guidance_scale yet.") from None

    def __set__(self, model: DiffusionAlgorithm, scale: float) -> None:
        attributes = vars(model)
        attributes["guidance_scale"] = check_scale(scale)
        if isinstance(attributes.get("policy"), GuidedPolicy):
            attributes["policy"].guidance_scale = scale


class ActsGuided(DiffusionAlgorithm):
    """A base class beside another one: the method's actions are guided, by a scale that may be changed at any time."""

    guidance_scale = GuidanceScale()

    @override
    def save(
        self, path: str | Path | io.BufferedIOBase, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        vars(self)["guidance_scale"] = self.guidance_scale  # somebody may have told the policy alone
        super().save(path, exclude, include)
