"""What ``-optimize`` draws: the entry ``search`` of a settings file, and four settings that most algorithms have."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sb3_diffusion.names import suggest

if TYPE_CHECKING:  # this module is imported to check a file, and Optuna takes a second
    import optuna

Sampler = Callable[["optuna.Trial", int, int, dict[str, Any]], dict[str, Any]]

SEARCH = "search"
"""Entry of a settings file that is no environment."""

FORMS = "{low: 0.1, high: 10.0}, {low: 0.1, high: 10.0, log: true} or {choices: [1, 2, 4]}"
NOT_SEARCHED = ("policy", "policy_kwargs", "env", "device", "seed", "verbose", "tensorboard_log", "_init_setup_model")


class Dimension(NamedTuple):
    """
    One parameter of a trial.

    :param name: Its name in the study
    :param low: Smallest value; if both ends are whole numbers, so is the parameter
    :param high: Largest value
    :param log: Whether its logarithm is uniform
    :param choices: The values that it may have, instead of a range
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def draw(self, trial: "optuna.Trial") -> Any:
        """
        :param trial: Trial to which the value belongs
        :return: The value
        """
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


COMMON = {
    "gamma": Dimension("one_minus_gamma", 1e-3, 0.05, log=True),
    "batch_size": Dimension("batch_size_pow", 7, 10),
    "tau": Dimension("tau", 1e-3, 0.05, log=True),
    "learning_rate": Dimension("learning_rate", 3e-5, 1e-3, log=True),
}
"""Argument -> what is drawn for every algorithm that has it, unless its own file says otherwise."""


def convert_params(sampled: Mapping[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters of a trial into constructor arguments.

    :param sampled: Parameters as stored in the study
    """
    arguments = dict(sampled)
    if "one_minus_gamma" in arguments:
        arguments["gamma"] = 1 - arguments.pop("one_minus_gamma")
    if "batch_size_pow" in arguments:
        arguments["batch_size"] = 2 ** arguments.pop("batch_size_pow")
    return arguments


def parse_search(config: str, entries: Any) -> list[Dimension]:
    """
    :param config: File that the entries are from, for messages
    :param entries: What stands under ``search`` there
    :return: The dimensions in the same order
    :raises ValueError: If an entry is none; the message is one line
    """
    where = f"settings file {config}, {SEARCH}"
    if not isinstance(entries, dict):
        raise ValueError(f"{where}: {entries!r} must be names of arguments with what to draw, such as temperature: {FORMS}.")
    return [_dimension(f"{where}: {name}", name, entry) for name, entry in entries.items()]


def _dimension(where: str, name: Any, entry: Any) -> Dimension:
    keys = set(entry) if isinstance(entry, dict) else set()
    if not isinstance(name, str) or keys not in ({"choices"}, {"low", "high"}, {"low", "high", "log"}):
        raise ValueError(f"{where}: {entry!r} must be {FORMS}.")
    if "choices" in keys:
        choices = entry["choices"]
        if not isinstance(choices, list) or not choices or not all(_is_plain(choice) for choice in choices):
            raise ValueError(f"{where}: choices={choices!r} must be a list of numbers, words, true, false or null.")
        return Dimension(name, choices=tuple(choices))
    low, high, log = entry["low"], entry["high"], entry.get("log", False)
    for end, value in (("low", low), ("high", high)):
        if not _is_number(value):
            text = " (YAML takes 1e-3 for text; write 1.0e-3)" if isinstance(value, str) else ""
            raise ValueError(f"{where}: {end}={value!r} must be a number{text}.")
    if not isinstance(log, bool):
        raise ValueError(f"{where}: log={log!r} must be true or false.")
    if not low < high:
        raise ValueError(f"{where}: low={low!r} must be below high={high!r}.")
    if log and low <= 0:
        raise ValueError(f"{where}: low={low!r} must be positive, as log is true.")
    return Dimension(name, low, high, log)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | str) or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def search_space(algorithm: type, config: str, entries: Any) -> list[Dimension]:
    """
    :param algorithm: The algorithm
    :param config: File that the entries are from, for messages
    :param entries: What stands under ``search`` there
    :return: What is drawn for each trial
    :raises ValueError: If an entry is none, or is no argument of the algorithm
    """
    own = parse_search(config, entries)
    arguments = [name for name in inspect.signature(algorithm).parameters if name not in NOT_SEARCHED]
    for name in (dimension.name for dimension in own if dimension.name not in arguments):
        hint = "it is not searched." if name in NOT_SEARCHED else suggest(name, arguments)
        raise ValueError(f"settings file {config}, {SEARCH}: {algorithm.__name__} cannot be searched over {name!r}; {hint}")
    replaced = {dimension.name for dimension in own}
    if "n_minibatches" in arguments:  # from which the size of a batch follows
        replaced.add("batch_size")
    return [common for name, common in COMMON.items() if name in arguments and name not in replaced] + own


def make_sampler(space: Callable[[], list[Dimension]]) -> Sampler:
    """
    :param space: Returns what is drawn; asked at the first trial and not before
    :return: What rl-zoo3 calls for each trial
    """

    def sample(trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        return convert_params({dimension.name: dimension.draw(trial) for dimension in space()})

    return sample
