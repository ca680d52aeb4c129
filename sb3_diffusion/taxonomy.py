"""
The algorithms by name. The FlowRL taxonomy as data: every method is a pair (guidance mechanism, reference policy).

:data:`METHODS` is the single source from which the package's exports, the zoo's registry, the tables in the documentation
and the parametrised tests are derived: one line per method, from which follows where its code is and whether it exists.
Table 1 of Gao et al. 2026 (arXiv 2603.27450) is a view of it, :data:`TAXONOMY`. A user's own class gets a name by
:func:`register_method`.
"""

import importlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from sb3_diffusion.names import closest

AlgorithmClass = TypeVar("AlgorithmClass", bound=type)

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

FAMILIES = MappingProxyType({**GUIDANCE_MECHANISMS, "baselines": "Baseline"})
"""Folder with one file per method -> title: the guidance mechanisms, and what the others are measured against."""


@dataclass(frozen=True)
class Method:
    """
    One line of the taxonomy.

    The class is called like the method, without its punctuation. Its module, which is also its name on the command line, is
    the class name in lower case and lies in the folder of the guidance mechanism: ``D-QL`` is
    ``sb3_diffusion.reparameterization.dql:DQL``, on the command line ``dql``. A method is available if its module exists.

    :param name: Name of the method in its paper
    :param guidance: Key of :data:`GUIDANCE_MECHANISMS`, or ``"baselines"``
    :param reference: Key of :data:`REFERENCE_POLICIES`
    :param setting: ``"off-policy"`` (online), ``"on-policy"`` or ``"offline"``
    :param paper: Authors and year of the paper that introduced the method
    :param arxiv: arXiv number of that paper
    :param in_table: Whether the method is one of the 24 in the table of the FlowRL paper
    :param command: Name on the command line if that of the class is another algorithm's
    """

    name: str
    guidance: str
    reference: str
    setting: str
    paper: str
    arxiv: str
    in_table: bool = True
    command: str = ""

    @property
    def class_name(self) -> str:
        """Name of the class, also as an attribute of the package."""
        return "".join(char for char in self.name if char.isalnum())

    @property
    def zoo_name(self) -> str:
        """Name on the command line, of the module, of the page in the documentation and of the hyperparameter file."""
        return self.command or self.class_name.lower()

    @property
    def module(self) -> str:
        """Full name of the module."""
        return f"sb3_diffusion.{self.guidance}.{self.class_name.lower()}"

    @property
    def class_path(self) -> str:
        """Where the class is, or will be: ``"module:Class"``."""
        return f"{self.module}:{self.class_name}"

    @cached_property
    def available(self) -> bool:
        """Whether this library implements the method. Nothing but the package of its family is imported to tell."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:  # there is no such family yet
            return False

    @property
    def cell(self) -> str:
        """The cell of the taxonomy in words."""
        return f"{FAMILIES[self.guidance]} x {REFERENCE_POLICIES[self.reference]}"

    def load(self) -> Any:
        """
        Import and return the algorithm class.

        :raises ImportError: If the method is known but not implemented, or its module does not define the class
        """
        if self.available:
            return _load(self.class_path)
        names = ", ".join(method.name for method in available_methods())
        raise ImportError(
            f"{self.name} ({self.cell}, arXiv {self.arxiv}) is part of the taxonomy but not available in this version "
            f"of sb3_diffusion; available are: {names}."
        )


METHODS: tuple[Method, ...] = (
    Method("IDQL", "best_of_n", "behavior", "offline", "Hansen-Estruch et al. 2023", "2304.10573"),
    Method("SfBC", "best_of_n", "behavior", "offline", "Chen et al. 2022", "2209.14548"),
    Method("QSM", "q_guidance", "uniform", "off-policy", "Psenka et al. 2023", "2312.11752"),
    Method("iDEM", "q_guidance", "uniform", "off-policy", "Akhound-Sadegh et al. 2024", "2402.06121"),
    Method("DPS", "q_guidance", "uniform", "off-policy", "Jain et al. 2024", "2410.01312"),
    Method("DAC", "q_guidance", "behavior", "offline", "Fang et al. 2024", "2405.20555"),
    Method("QGPO", "q_guidance", "behavior", "offline", "Lu et al. 2023", "2304.12824"),
    Method("Diffusion-DICE", "q_guidance", "behavior", "offline", "Mao et al. 2024", "2407.20109"),
    Method("SDAC", "weighted_matching", "uniform", "off-policy", "Ma et al. 2025", "2502.00361"),
    Method("MaxEntDP", "weighted_matching", "uniform", "off-policy", "Dong et al. 2025", "2502.11612"),
    Method("QVPO", "weighted_matching", "uniform", "off-policy", "Ding et al. 2024", "2405.16173"),
    Method("DPMD", "weighted_matching", "previous", "off-policy", "Ma et al. 2025", "2502.00361"),
    Method("FPMD", "weighted_matching", "previous", "off-policy", "Chen et al. 2025", "2507.23675"),
    Method("QIPO", "weighted_matching", "behavior", "offline", "Zhang et al. 2025", "2503.04975"),
    Method("DACER", "reparameterization", "uniform", "off-policy", "Wang et al. 2024", "2405.15177"),
    Method("DACERv2", "reparameterization", "uniform", "off-policy", "Wang et al. 2025", "2505.23426"),
    Method("DIME", "reparameterization", "uniform", "off-policy", "Celik et al. 2025", "2502.02316"),
    Method("D-QL", "reparameterization", "behavior", "offline", "Wang et al. 2022", "2208.06193"),
    Method("BDPO", "reparameterization", "behavior", "offline", "Gao et al. 2025", "2502.04778"),
    Method("EDP", "reparameterization", "behavior", "offline", "Kang et al. 2023", "2305.20081"),
    Method("FQL", "reparameterization", "behavior", "offline", "Park et al. 2025", "2502.02538"),
    Method("DTQL", "reparameterization", "behavior", "offline", "Chen et al. 2024", "2405.19690", in_table=False),
    Method("FPO", "policy_gradient", "previous", "on-policy", "McAllister et al. 2025", "2507.21053"),
    Method("GenPO", "policy_gradient", "previous", "on-policy", "Ding et al. 2025", "2505.18763"),
    Method("DPPO", "policy_gradient", "previous", "on-policy", "Ren et al. 2024", "2409.00588"),
    Method("FPOpp", "policy_gradient", "previous", "on-policy", "Yi et al. 2026", "2602.02481", in_table=False),
    Method("BC", "baselines", "behavior", "offline", "Wang et al. 2022", "2208.06193", in_table=False),
    Method(
        "PPO", "baselines", "previous", "on-policy", "Schulman et al. 2017", "1707.06347", in_table=False, command="tensor_ppo"
    ),
    Method("IQL", "baselines", "behavior", "offline", "Kostrikov et al. 2021", "2110.06169", in_table=False),
)
"""All methods, those of the paper's Table 1 in its order; a line more is all that another method needs in an existing file."""

TAXONOMY: tuple[Method, ...] = tuple(method for method in METHODS if method.in_table)
"""The 24 methods of the paper's Table 1, in its order."""

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
"""Name on the command line -> ``"module:Class"`` of the algorithms of Stable-Baselines3, which are used as they are."""

CONTRIB = ("ars", "crossq", "qrdqn", "tqc", "trpo", "ppo_lstm")
"""Names on the command line of the algorithms of sb3-contrib, which the RL Zoo brings along."""


class Registered(NamedTuple):
    """
    A class of the user's own.

    :param algorithm: The class
    :param settings: File with its settings for the zoo, if there is one
    """

    algorithm: type
    settings: Path | None


_REGISTERED: dict[str, Registered] = {}


def available_methods() -> tuple[Method, ...]:
    """The methods that this library implements, in the order of the table."""
    return tuple(method for method in METHODS if method.available)


def methods_of(guidance: str, reference: str) -> list[Method]:
    """
    A cell of the taxonomy.

    :param guidance: Key of :data:`FAMILIES`
    :param reference: Key of :data:`REFERENCE_POLICIES`
    :return: Its methods in the order of the table: those of the paper, and others that are available
    """
    shown = [method for method in METHODS if method.in_table or method.available]
    return [method for method in shown if (method.guidance, method.reference) == (guidance, reference)]


def get_method(name: str) -> Method:
    """
    Look a method up by name, ignoring case and punctuation (``"sdac"``, ``"D-QL"`` and ``"dql"`` all work).

    :param name: Name of the method
    :raises ValueError: If there is no such method; the message suggests close names
    """
    known = {_key(name): method for method in METHODS for name in (method.name, method.zoo_name)}
    if _key(name) in known:
        return known[_key(name)]
    close = [known[key].name for key in closest(_key(name), known, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(m.name for m in METHODS)}."
    raise ValueError(f"Unknown method name={name!r}; {hint}")


def register_method(algorithm: AlgorithmClass, settings: str | Path | None = None) -> AlgorithmClass:
    """
    Give a class of your own a name, so that its agents can be loaded without running code, and the zoo can train it.

    The name is that of the class in lower case: ``class Mine(SDAC)`` is ``mine`` in files and on the command line. Whoever
    loads such an agent has to import the module that registers the class first; the zoo does, if ``--gym-packages`` names it.
    To register a class again changes nothing, and one that was defined anew, as in a notebook, takes the old one's place.
    The class is returned, so that this is a decorator as well.

    :param algorithm: A subclass of one of our algorithms, or of Stable-Baselines3's
    :param settings: File with its settings for the zoo, in the form of ``hyperparams/sdac.yml``; without, ``--conf-file`` has
        to name one
    :return: The class
    :raises TypeError: If it is not the class of an algorithm
    :raises ValueError: If its name is taken or is none for a file, or if there is no such file of settings
    """
    from stable_baselines3.common.base_class import BaseAlgorithm  # PyTorch with it, which the command line does not wait for

    if not (isinstance(algorithm, type) and issubclass(algorithm, BaseAlgorithm)):
        raise TypeError(f"algorithm={algorithm!r} must be a class that derives from an algorithm.")
    name = algorithm.__name__.lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"algorithm={algorithm!r} cannot be registered: {name!r} is no name for a file; use letters of ASCII."
        )
    if settings is not None and not Path(settings).is_file():
        raise ValueError(
            f"settings={str(settings)!r} is not a file; give the path of the .yml, such as that beside the module."
        )
    known = {_key(other): path for other, path in _class_paths().items()}
    owner = known.get(_key(name))
    if owner is None and _key(name) in map(_key, CONTRIB):
        owner = "an algorithm of sb3-contrib"
    if owner not in (None, _path_of(algorithm)):
        raise ValueError(
            f"algorithm={algorithm!r} cannot be registered: the name {name!r} is that of {owner}; give the class another name."
        )
    if owner is None or name in _REGISTERED:
        _REGISTERED[name] = Registered(algorithm, None if settings is None else Path(settings).resolve())
    return algorithm


def registered_methods() -> MappingProxyType[str, Registered]:
    """Name -> what :func:`register_method` was given."""
    return MappingProxyType(_REGISTERED)


def load_algorithm(name: str) -> Any:
    """
    Import and return the class of a method or of a baseline, or one of the user's own.

    :param name: Name on the command line, such as ``"sdac"`` or ``"ppo"``
    :raises ValueError: If there is no such algorithm
    :raises ImportError: If the method is known but not implemented
    """
    if name in _REGISTERED:
        return _REGISTERED[name].algorithm
    return _load(BASELINES[name]) if name in BASELINES else get_method(name).load()


def algorithm_name(cls: type) -> str | None:
    """
    Inverse of :func:`load_algorithm`.

    :param cls: Class of an algorithm
    :return: Its name on the command line; ``None`` if it is neither ours nor a baseline nor registered, such as a subclass
    """
    return next((name for name, known in _class_paths().items() if known == _path_of(cls)), None)


def _class_paths() -> dict[str, str]:
    """Name on the command line -> ``"module:Class"`` of everything that has a name."""
    own = {name: _path_of(entry.algorithm) for name, entry in _REGISTERED.items()}
    return {method.zoo_name: method.class_path for method in METHODS} | dict(BASELINES) | own


def _path_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _load(class_path: str) -> Any:
    module, _, class_name = class_path.partition(":")
    try:
        return vars(importlib.import_module(module))[class_name]
    except KeyError:
        raise ImportError(f"{module} must define the class {class_name}, after which the taxonomy calls it.") from None


def _key(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())
