"""Names in files of earlier versions: where classes were, and what weights were called."""

import importlib
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_MODULES = {
    "sb3_diffusion.core.guidance": "sb3_diffusion.policies.guided",
    "sb3_diffusion.core.replay": "sb3_diffusion.data.replay",
}
"""Modules that pickles of versions before 0.2 name."""
_MEMBERS = {
    "policy.exploration.optimizer": "policy.multipliers.noise_factor.optimizer",
    "policy.multipliers.alpha.optimizer": "policy.multipliers.noise_factor.optimizer",
}
_WEIGHTS = {
    "exploration.log_alpha": "multipliers.noise_factor.log_value",
    "multipliers.alpha.log_value": "multipliers.noise_factor.log_value",
}


@contextmanager
def old_modules() -> Iterator[None]:
    """Within it, pickles find classes in the modules in which they were when the file was written."""
    added = [old for old in _MODULES if old not in sys.modules]
    try:
        for old in added:
            sys.modules[old] = importlib.import_module(_MODULES[old])
        yield
    finally:
        for old in added:
            sys.modules.pop(old, None)


def up_to_date(saved: Mapping[str, Any], expected: Collection[str]) -> dict[str, Any]:
    """
    :param saved: Member of a saved agent -> its tensors, by whatever version
    :param expected: Names of the members in this version
    :return: The same by today's names, without optimizers of networks that are not trained any more
    """
    members = {_MEMBERS.get(name, name): value for name, value in saved.items()}
    policy = members.get("policy")
    if isinstance(policy, Mapping):
        members["policy"] = {_WEIGHTS.get(name, name): value for name, value in policy.items()}
    return {name: value for name, value in members.items() if name in expected or name != "actor.optimizer"}
