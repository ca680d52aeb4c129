"""The FlowRL taxonomy as data: every method is a pair (guidance mechanism, reference policy).

This table (Table 1 of Gao et al. 2026, arXiv 2603.27450) is the single source from which the package's exports, the zoo's
registry, the tables in the documentation and the parametrised tests are derived. Adding an algorithm means giving its row a
``class_path``.
"""

import importlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sb3_diffusion.names import closest

GUIDANCE_MECHANISMS = MappingProxyType(
    {
        "best_of_n": "Best of N",
        "q_guidance": "Q-value guidance",
        "weighted_matching": "Weighted matching",
        "reparameterization": "Reparameterisation",
        "policy_gradient": "Policy gradient",
    }
)
"""Guidance mechanism (also the name of its folder) -> title."""

REFERENCE_POLICIES = MappingProxyType(
    {
        "uniform": "Uniform (maximum entropy)",
        "previous": "Previous policy (mirror descent)",
        "behavior": "Behaviour policy (offline data)",
    }
)
"""Reference policy -> title."""


@dataclass(frozen=True)
class Method:
    """
    One row of the taxonomy.

    :param name: Name of the algorithm, which is also its class name where that is a valid identifier
    :param guidance: Key of :data:`GUIDANCE_MECHANISMS`
    :param reference: Key of :data:`REFERENCE_POLICIES`
    :param setting: ``"off-policy"`` (online), ``"on-policy"`` or ``"offline"``
    :param paper: Authors and year of the paper that introduced the method
    :param arxiv: arXiv number of that paper
    :param class_path: ``"module:Class"`` of our implementation, ``None`` while there is none
    """

    name: str
    guidance: str
    reference: str
    setting: str
    paper: str
    arxiv: str
    class_path: str | None = None

    @property
    def available(self) -> bool:
        """Whether this library implements the method."""
        return self.class_path is not None

    @property
    def zoo_name(self) -> str:
        """Name on the command line and of the hyperparameter file."""
        return self.name.lower().replace("-", "_")

    @property
    def cell(self) -> str:
        """The cell of the taxonomy in words."""
        return f"{GUIDANCE_MECHANISMS[self.guidance]} x {REFERENCE_POLICIES[self.reference]}"

    def load(self) -> Any:
        """
        Import and return the algorithm class.

        :raises ImportError: If the method is part of the taxonomy but not implemented
        """
        if self.class_path is None:
            names = ", ".join(method.name for method in available_methods())
            raise ImportError(
                f"{self.name} ({self.cell}, arXiv {self.arxiv}) is part of the taxonomy but not available in this version "
                f"of sb3_diffusion; available are: {names}."
            )
        return _load(self.class_path)


TAXONOMY: tuple[Method, ...] = (
    Method("IDQL", "best_of_n", "behavior", "offline", "Hansen-Estruch et al. 2023", "2304.10573"),
    Method("SfBC", "best_of_n", "behavior", "offline", "Chen et al. 2022", "2209.14548"),
    Method(
        "QSM", "q_guidance", "uniform", "off-policy", "Psenka et al. 2023", "2312.11752", "sb3_diffusion.q_guidance.qsm:QSM"
    ),
    Method(
        "iDEM",
        "q_guidance",
        "uniform",
        "off-policy",
        "Akhound-Sadegh et al. 2024",
        "2402.06121",
        "sb3_diffusion.q_guidance.idem:iDEM",
    ),
    Method("DPS", "q_guidance", "uniform", "off-policy", "Jain et al. 2024", "2410.01312", "sb3_diffusion.q_guidance.dps:DPS"),
    Method("DAC", "q_guidance", "behavior", "offline", "Fang et al. 2024", "2405.20555"),
    Method("QGPO", "q_guidance", "behavior", "offline", "Lu et al. 2023", "2304.12824"),
    Method("Diffusion-DICE", "q_guidance", "behavior", "offline", "Mao et al. 2024", "2407.20109"),
    Method(
        "SDAC",
        "weighted_matching",
        "uniform",
        "off-policy",
        "Ma et al. 2025",
        "2502.00361",
        "sb3_diffusion.weighted_matching.sdac:SDAC",
    ),
    Method(
        "MaxEntDP",
        "weighted_matching",
        "uniform",
        "off-policy",
        "Dong et al. 2025",
        "2502.11612",
        "sb3_diffusion.weighted_matching.maxentdp:MaxEntDP",
    ),
    Method(
        "QVPO",
        "weighted_matching",
        "uniform",
        "off-policy",
        "Ding et al. 2024",
        "2405.16173",
        "sb3_diffusion.weighted_matching.qvpo:QVPO",
    ),
    Method(
        "DPMD",
        "weighted_matching",
        "previous",
        "off-policy",
        "Ma et al. 2025",
        "2502.00361",
        "sb3_diffusion.weighted_matching.dpmd:DPMD",
    ),
    Method(
        "FPMD",
        "weighted_matching",
        "previous",
        "off-policy",
        "Chen et al. 2025",
        "2507.23675",
        "sb3_diffusion.weighted_matching.fpmd:FPMD",
    ),
    Method("QIPO", "weighted_matching", "behavior", "offline", "Zhang et al. 2025", "2503.04975"),
    Method(
        "DACER",
        "reparameterization",
        "uniform",
        "off-policy",
        "Wang et al. 2024",
        "2405.15177",
        "sb3_diffusion.reparameterization.dacer:DACER",
    ),
    Method(
        "DACERv2",
        "reparameterization",
        "uniform",
        "off-policy",
        "Wang et al. 2025",
        "2505.23426",
        "sb3_diffusion.reparameterization.dacerv2:DACERv2",
    ),
    Method(
        "DIME",
        "reparameterization",
        "uniform",
        "off-policy",
        "Celik et al. 2025",
        "2502.02316",
        "sb3_diffusion.reparameterization.dime:DIME",
    ),
    Method("D-QL", "reparameterization", "behavior", "offline", "Wang et al. 2022", "2208.06193"),
    Method("BDPO", "reparameterization", "behavior", "offline", "Gao et al. 2025", "2502.04778"),
    Method("EDP", "reparameterization", "behavior", "offline", "Kang et al. 2023", "2305.20081"),
    Method("FQL", "reparameterization", "behavior", "offline", "Park et al. 2025", "2502.02538"),
    Method("FPO", "policy_gradient", "previous", "on-policy", "McAllister et al. 2025", "2507.21053"),
    Method("GenPO", "policy_gradient", "previous", "on-policy", "Ding et al. 2025", "2505.18763"),
    Method("DPPO", "policy_gradient", "previous", "on-policy", "Ren et al. 2024", "2409.00588"),
)
"""All 24 methods of the paper's Table 1, in its order."""

BASELINES = MappingProxyType(
    {
        "a2c": "stable_baselines3.a2c.a2c:A2C",
        "ddpg": "stable_baselines3.ddpg.ddpg:DDPG",
        "dqn": "stable_baselines3.dqn.dqn:DQN",
        "ppo": "stable_baselines3.ppo.ppo:PPO",
        "sac": "stable_baselines3.sac.sac:SAC",
        "td3": "stable_baselines3.td3.td3:TD3",
    }
)
"""Name on the command line -> ``"module:Class"`` of the algorithms of Stable-Baselines3, which stand outside the taxonomy."""


def available_methods() -> tuple[Method, ...]:
    """The methods that this library implements, in the order of the paper."""
    return tuple(method for method in TAXONOMY if method.available)


def get_method(name: str) -> Method:
    """
    Look a method up by name, ignoring case and punctuation (``"sdac"``, ``"D-QL"`` and ``"dql"`` all work).

    :param name: Name of the method
    :raises ValueError: If the taxonomy has no such method; the message suggests close names
    """
    known = {_key(method.name): method for method in TAXONOMY}
    if _key(name) in known:
        return known[_key(name)]
    close = [known[key].name for key in closest(_key(name), known, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(m.name for m in TAXONOMY)}."
    raise ValueError(f"Unknown method name={name!r}; {hint}")


def load_algorithm(name: str) -> Any:
    """
    Import and return the class of a method or of a baseline.

    :param name: Name on the command line, such as ``"sdac"`` or ``"ppo"``
    :raises ValueError: If there is no such algorithm
    :raises ImportError: If the method is part of the taxonomy but not implemented
    """
    return _load(BASELINES[name]) if name in BASELINES else get_method(name).load()


def algorithm_name(cls: type) -> str | None:
    """
    Inverse of :func:`load_algorithm`.

    :param cls: Class of an algorithm
    :return: Its name on the command line; ``None`` if it is neither ours nor a baseline, such as a subclass of either
    """
    path = f"{cls.__module__}:{cls.__qualname__}"
    paths = {method.zoo_name: method.class_path for method in available_methods()} | dict(BASELINES)
    return next((name for name, known in paths.items() if known == path), None)


def _load(class_path: str) -> Any:
    module, _, class_name = class_path.partition(":")
    return getattr(importlib.import_module(module), class_name)


def _key(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())
