"""The text files of a run or of a published agent: read without running anything, written without tags."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000


class SavedArgumentsLoader(yaml.SafeLoader):
    """Safe loader that also knows the two Python tags rl-zoo3 writes: ordered dictionaries and tuples."""


def _ordered_dict(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> dict[str, Any]:
    (pairs,) = loader.construct_sequence(node, deep=True)
    return dict(pairs)


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


SavedArgumentsLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
SavedArgumentsLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def read_yaml(path: Path) -> dict[str, Any]:
    """
    Read a mapping. A file that asks for Python objects is refused, nothing of it is built.

    :param path: A YAML file
    :raises ValueError: if it is not a plain mapping; the message names the file and the reason
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_BYTES} that settings may have.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=SavedArgumentsLoader)
    except yaml.constructor.ConstructorError as error:
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else "an unknown line"
        raise ValueError(
            f"{path} is refused, {where}: {error.problem}; only plain values are read, nothing was run."
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not readable as YAML: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a mapping of names to values, not {type(content).__name__}.")
    return content


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """
    Write a plain mapping.

    :param path: Where to
    :param content: Plain values
    :raises ValueError: if a value is an object that YAML would need a tag for
    """
    try:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError as error:
        raise ValueError(f"{path.name} can hold plain values only: {error.args[0]}, {error.args[1]!r}.") from None
    path.write_text(text, encoding="utf-8")


def saved_env_kwargs(settings: Path, hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments of the environment: those of the settings, overwritten by those of the training command.

    :param settings: Folder with ``args.yml``
    :param hyperparams: Settings saved with the run; the environment's arguments are removed from them
    """
    env_kwargs = _mapping(hyperparams.pop("env_kwargs", None), settings / "config.yml")
    args_file = settings / "args.yml"
    if args_file.is_file():
        env_kwargs |= _mapping(read_yaml(args_file).get("env_kwargs"), args_file)
    return env_kwargs


def _mapping(value: Any, path: Path) -> dict[str, Any]:
    if value is None or isinstance(value, dict):
        return dict(value or {})
    raise ValueError(f"{path}: env_kwargs must be a mapping of names to values, not {type(value).__name__}.")
