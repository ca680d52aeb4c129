"""Observation groups of robot simulators: which of them is observed, under which names, and what is for critics only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor.observations import Observation, box
from sb3_diffusion.names import suggest


class ObservationGroups:
    """
    Picks the observation of an agent from a dictionary of groups.

    A group is one tensor or, if its terms are kept apart, a dictionary of them. Without a group for the critic, the chosen one
    is the observation, as it is. With one, the observation is a ``Dict`` of both, whose entries are named after the groups
    (``policy``), or after groups and terms (``policy/joint_pos``).

    :param space: Space of all groups, of Gymnasium or anything that has ``spaces`` and, within, ``shape``, ``low`` and
        ``high``
    :param group: What everybody may read
    :param critic_group: What critics may read besides
    """

    def __init__(self, space: Any, group: str, critic_group: str | None):
        known = space.spaces
        for name, value in (("group", group), ("critic_group", critic_group)):
            if value is not None and value not in known:
                raise ValueError(f"{name}={value!r} is no observation group of this environment; {suggest(value, known)}")
        if group == critic_group:
            raise ValueError(f"critic_group={group!r} is what the actor reads already; leave critic_group out.")
        self.names = [group] if critic_group is None else [group, critic_group]
        self._sources: dict[str, tuple[str, str | None]] = {}
        self._whole = critic_group is None and not _is_dict(known[group])
        self._parts: dict[str, spaces.Box] = {}
        self.privileged: list[str] = []
        for name in self.names:
            terms = known[name].spaces if _is_dict(known[name]) else {None: known[name]}
            for term, part in terms.items():
                key = name if term is None else term if critic_group is None else f"{name}/{term}"
                self._sources[key] = (name, term)
                self._parts[key] = _as_box(part)
                if name == critic_group:
                    self.privileged.append(key)
        self.space: spaces.Box | spaces.Dict = self._parts[group] if self._whole else spaces.Dict(self._parts)  # type: ignore[arg-type]

    def pick(self, observed: Mapping[str, Any]) -> Observation:
        """
        :param observed: All groups
        :return: Copies of the chosen ones: the simulator may write its tensors again
        """
        picked = {}
        for key, (group, term) in self._sources.items():
            tensor = observed[group] if term is None else observed[group][term]
            picked[key] = (tensor if tensor.dtype == th.uint8 else tensor.float()).clone()
        return next(iter(picked.values())) if self._whole else picked

    def fits(self, observed: Any, n_envs: int) -> bool:
        """
        :param observed: What may be a dictionary of groups
        :param n_envs: Number of environments
        :return: Whether everything that is chosen is there, in the right shape
        """
        if not isinstance(observed, Mapping):
            return False
        for key, (group, term) in self._sources.items():
            found = observed.get(group)
            if term is not None:
                found = found.get(term) if isinstance(found, Mapping) else None
            if getattr(found, "shape", None) != (n_envs, *self._parts[key].shape):
                return False
        return True


def _is_dict(space: Any) -> bool:
    return hasattr(space, "spaces")


def _as_box(space: Any) -> spaces.Box:
    if str(space.dtype) == "uint8":
        return spaces.Box(0, 255, tuple(space.shape), np.uint8)
    return box(tuple(space.shape), space.low, space.high)
