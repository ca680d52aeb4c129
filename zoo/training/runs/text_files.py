"""The text files of a run or of a published agent: read without running anything, written without tags."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sb3_diffusion.checkpoints.tagged_json import MAX_DEPTH, check_bounded, finite
from sb3_diffusion.printable import printable

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
"""Largest number of values of a file; those that an alias repeats count as often as it is used."""
MAX_DIGITS = 20


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
    :raises ValueError: If it is not a plain mapping; the message names the file and the reason
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_BYTES} that settings may have.")
    try:
        content = _parse(path.read_bytes().decode("utf-8"))
    except yaml.constructor.ConstructorError as error:
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else "an unknown line"
        raise ValueError(
            f"{path} is refused, {where}: {printable(error.problem, 300)}; only plain values are read, nothing was run."
        ) from None
    # a tag can be put on what it does not fit: the constructors of PyYAML raise whatever comes
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not readable as YAML: {printable(reason, 300)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a mapping of names to values, not {type(content).__name__}.")
    return content


def _parse(text: str) -> Any:
    """The values of a YAML text, of which nothing is built before it is known to be small."""
    loader = SavedArgumentsLoader(text)
    try:
        node = loader.get_single_node()
        for scalar in _scalars(node):
            _check_number(scalar)
        content = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    check_bounded(content, MAX_VALUES, control=True)
    return content


def _scalars(root: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """The values as the constructor will meet them: what has several names several times."""
    n_values, stack = 0, [(root, 0)]
    while stack:
        node, depth = stack.pop()
        n_values += 1
        if n_values > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested too deeply, more than {MAX_DEPTH} levels")
        if isinstance(node, yaml.ScalarNode):
            yield node
        elif isinstance(node, yaml.SequenceNode):
            stack += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            stack += [(part, depth + 1) for pair in node.value for part in pair]


def _check_number(node: yaml.ScalarNode) -> None:
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind in ("int", "float") and ":" in text:
        raise ValueError(f"the number {printable(text, 40)} is written to the base of 60; put it into quotes if it is text")
    if kind == "int" and len(text) > MAX_DIGITS + text.count("_") + 2:
        raise ValueError(f"the integer {printable(text, 40)} has more than {MAX_DIGITS} digits")
    if kind == "float" and not re.fullmatch(r"[-+]?\.(inf|nan)", text.lower()):
        finite(text.replace("_", ""))


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """
    Write a plain mapping.

    :param path: Where to
    :param content: Plain values
    :raises ValueError: If a value is an object that YAML would need a tag for
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
