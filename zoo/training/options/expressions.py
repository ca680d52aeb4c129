"""
Values that are written as text: literals, ``dict(...)``, arithmetic on numbers, and classes such as ``nn.ReLU``.

The notation is that of rl-zoo3, which lets Python evaluate it, whoever wrote the text. Here a text is taken apart, and what
is none of these forms is an error: no text calls a function, imports a module, or reaches anything but public classes and
numbers of a few libraries.
"""

import ast
import importlib
import math
import operator
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from sb3_diffusion.names import suggest

MODULES = {
    "gym": "gymnasium",
    "sb3": "stable_baselines3",
    "th": "torch",
    "torch": "torch",
    "nn": "torch.nn",
    "np": "numpy",
    "spaces": "gymnasium.spaces",
}
"""First words of dotted names, and the modules that they stand for: those of rl-zoo3, and what they are called elsewhere."""

CLASSES = {
    "HerReplayBuffer": "stable_baselines3",
    "RMSpropTFLike": "stable_baselines3.common.sb2_compat.rmsprop_tf_like",
}
"""Classes that need no module before them, and where they are."""

LIBRARIES = ("gymnasium", "numpy", "sb3_contrib", "sb3_diffusion", "stable_baselines3", "torch")
"""Packages whose classes may be named."""

READABLE = "numbers, text, lists, tuples, dictionaries, dict(...), arithmetic on numbers and classes such as nn.ReLU"
LONGEST, LARGEST = 10_000, 1_000
"""Characters of a text; items of a repeated list, lists inside it included, and numbers that have a power."""


def parse(text: str) -> Any:
    """
    :param text: A value in Python's notation
    :return: The value; a word that names nothing is text
    :raises ValueError: If it is none of the forms above
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} characters, more than {LONGEST}")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"{error.msg}; close every bracket and quote") from None
    except (TypeError, ArithmeticError) as error:  # an unhashable key, a division by zero
        raise ValueError(f"{type(error).__name__}: {error}") from None
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deeply") from None


def is_name_of_class(text: str) -> bool:
    """
    :param text: A word, perhaps with dots in it
    :return: Whether it is to be looked up in a library
    """
    first, dot, _ = text.partition(".")
    return first in MODULES if dot else first in CLASSES


def _value(node: ast.expr) -> Any:
    if type(node) not in _FORMS:
        raise _unreadable(node)
    return _FORMS[type(node)](node)


def _unreadable(node: ast.expr) -> ValueError:
    return ValueError(f"{ast.unparse(node)} is not read; there may be {READABLE}")


def _constant(node: ast.Constant) -> Any:
    if node.value is None or isinstance(node.value, bool | int | float | str):
        return node.value
    raise _unreadable(node)


def _values(node: ast.List | ast.Tuple | ast.Set) -> Any:
    kind: Callable[[list[Any]], Any] = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
    return kind([_value(item) for item in node.elts])


def _dictionary(node: ast.Dict) -> dict[Any, Any]:
    if None in node.keys:
        raise _unreadable(node)
    return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key is not None}


def _call(node: ast.Call) -> dict[str, Any]:
    names = [keyword.arg for keyword in node.keywords]
    if not isinstance(node.func, ast.Name) or node.func.id != "dict" or node.args or None in names:
        raise _unreadable(node)
    return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}


def _signed(node: ast.UnaryOp) -> Any:
    value = _value(node.operand)
    if not _is_number(value) or not isinstance(node.op, ast.USub | ast.UAdd):
        raise _unreadable(node)
    return -value if isinstance(node.op, ast.USub) else value


_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def _arithmetic(node: ast.BinOp) -> Any:
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Mult) and isinstance(right, list | tuple):  # 2 * [64]
        left, right = right, left
    if isinstance(node.op, ast.Mult) and isinstance(left, list | tuple) and type(right) is int:
        if _n_items(left) * right > LARGEST:
            raise ValueError(f"{ast.unparse(node)} has more than {LARGEST} items")
        return left * right
    if type(node.op) not in _ARITHMETIC or not (_is_number(left) and _is_number(right)):
        raise _unreadable(node)
    if isinstance(node.op, ast.Pow) and (abs(right) > LARGEST or abs(left) > LARGEST):
        raise ValueError(f"{ast.unparse(node)} is too large to be computed")
    result = _ARITHMETIC[type(node.op)](left, right)
    if not _is_number(result) or not math.isfinite(result):
        raise ValueError(f"{ast.unparse(node)} is no finite number")
    return result


def _n_items(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value
    return max(1, sum(map(_n_items, items))) if isinstance(value, list | tuple | set | dict) else 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _word(node: ast.Name) -> Any:
    return getattr(importlib.import_module(CLASSES[node.id]), node.id) if node.id in CLASSES else node.id


def _dotted_name(node: ast.Attribute) -> Any:
    """A public class, or a number such as ``np.inf``, below one of the modules; modules in between are loaded already."""
    text = ast.unparse(node)
    first, *names = text.split(".")
    if first not in MODULES:
        if all(name.isidentifier() for name in (first, *names)):
            return text
        raise _unreadable(node)
    found: Any = importlib.import_module(MODULES[first])
    for name in names:
        inside = [known for known in dir(found) if not known.startswith("_")]
        if not isinstance(found, ModuleType) or not _is_of_libraries(found.__name__) or name not in inside:
            raise ValueError(f"{text}: there is no {name}; {suggest(name, inside, 'check the spelling.')}")
        found = getattr(found, name)
    if _is_number(found) or (isinstance(found, type) and _is_of_libraries(found.__module__)):
        return found
    raise ValueError(f"{text} is neither a class of {', '.join(LIBRARIES)} nor a number")


def _is_of_libraries(module: str) -> bool:
    return module.partition(".")[0] in LIBRARIES


_FORMS: Mapping[type[ast.expr], Callable[[Any], Any]] = {
    ast.Constant: _constant,
    ast.List: _values,
    ast.Tuple: _values,
    ast.Set: _values,
    ast.Dict: _dictionary,
    ast.Call: _call,
    ast.UnaryOp: _signed,
    ast.BinOp: _arithmetic,
    ast.Name: _word,
    ast.Attribute: _dotted_name,
}
