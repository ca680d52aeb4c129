"""Weights from a file that somebody else made: read without running code, and checked against what was built."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sb3_diffusion.core.archives import open_archive

MAX_INDEX_BYTES = 2**24
"""Largest size of the list of the tensors of a file."""


def load_tensors(content: bytes, where: str) -> Any:
    """
    :param content: What ``torch.save`` wrote
    :param where: File and member, for the messages
    :return: The tensors, on the CPU
    :raises ValueError: if there is anything in it but containers of tensors and numbers
    """
    with open_archive(content, where, compressed=False) as archive:
        if any(size > MAX_INDEX_BYTES for name, size in archive.sizes.items() if name.endswith(".pkl")):
            raise ValueError(f"{where} has too long a list of tensors; the file is damaged or hostile, do not use it.")
    try:
        return th.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message recommends weights_only=False
        raise ValueError(
            f"{where} holds something other than tensors and numbers, or is damaged ({type(error).__name__}); "
            "nothing of it was run, do not use the file."
        ) from None


def count_entries(value: Any) -> int:
    """
    :param value: Tensors in nested mappings
    :return: How many numbers they hold together
    """
    if isinstance(value, Mapping):
        return sum(count_entries(item) for item in value.values())
    return value.numel() if isinstance(value, th.Tensor) else 0


@contextmanager
def at_most(n_saved: int) -> Iterator[None]:
    """
    Within it, building networks stops as soon as they are much larger than the weights that they are to get, so that a small
    file cannot ask for more memory than there is.

    :param n_saved: Number of the weights in the file
    """
    n_made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal n_made
        if parameter is not None and not nn.parameter.is_lazy(parameter):
            n_made += parameter.numel()
        if n_made > 2 * n_saved:
            raise ValueError(f"the networks have more than {n_made:,} weights, the file {n_saved:,}")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_state(where: str, module: nn.Module, state: Any) -> None:
    """
    :param where: File and member, for the messages
    :param module: The network
    :param state: What is to be loaded into it
    :raises ValueError: if weights are missing, left over or of another shape or type
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{where} must be a mapping from names to tensors; the file is damaged.")
    expected = module.state_dict()
    check_names(where, "weights", set(expected), set(state))
    for name, tensor in expected.items():
        check_tensor(f"{where}: {name}", tensor, state[name])


def check_tensor(where: str, expected: th.Tensor, tensor: Any) -> None:
    """
    :param where: File, member and name, for the messages
    :param expected: The tensor that was built
    :param tensor: What is to be copied into it
    :raises ValueError: if it is no dense tensor of this shape and type
    """
    if not isinstance(tensor, th.Tensor) or tensor.layout != th.strided:
        raise ValueError(f"{where} must be a dense tensor; the file is damaged.")
    if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
        raise ValueError(
            f"{where} has shape {tuple(tensor.shape)} ({tensor.dtype}), the network that the arguments describe "
            f"{tuple(expected.shape)} ({expected.dtype}); the two do not belong together, get the file again."
        )


def check_optimizer(where: str, optimizer: th.optim.Optimizer, state: Any) -> None:
    """
    :param where: File and member, for the messages
    :param optimizer: The optimizer
    :param state: What is to be loaded into it
    :raises ValueError: if it belongs to other parameters, or has anything in it but numbers and tensors of their shapes
    """
    groups, moments = (state.get(key) if isinstance(state, dict) else None for key in ("param_groups", "state"))
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups) or not isinstance(moments, dict):
        raise ValueError(f"{where} must be the state of an optimizer; the file is damaged.")
    indices = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    if [group.get("params") for group in groups] != indices:
        raise ValueError(f"{where} is the state of other parameters than those of the optimizer; get the file again.")
    # further names are left to torch, whose versions differ
    for name, value in (item for group in groups for item in group.items()):
        if name != "params" and not _is_setting(value):
            raise ValueError(f"{where}: {name!r} must be a number, not a {type(value).__name__}; the file is damaged.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in moments.items():
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(entries, dict):
            raise ValueError(f"{where}: state {index!r} belongs to no parameter; the file is damaged.")
        for name, value in entries.items():
            if not (_is_setting(value) or (isinstance(value, th.Tensor) and _fits(value, parameters[index]))):
                raise ValueError(f"{where}: state {index}: {name!r} has not the shape of its parameter; the file is damaged.")


def check_names(where: str, what: str, expected: set[str], found: set[str]) -> None:
    """
    :param where: File and member, for the messages
    :param what: What the names are of
    :param expected: Names that there have to be
    :param found: Names that there are
    :raises ValueError: naming the first that is missing or left over
    """
    for verb, names in (("lacks the", expected - found), ("has an unexpected", found - expected)):
        if names:
            raise ValueError(f"{where} {verb} {what} {min(names, key=str)!r} ({len(names)} in all); get the file again.")


def _is_setting(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_setting(item) for item in value)
    # a graph keeps the learning rate in a tensor
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, th.Tensor) and value.numel() == 1)


def _fits(value: th.Tensor, parameter: th.Tensor) -> bool:
    """A moment of a parameter, or its sums over rows or columns."""
    same = value.ndim == parameter.ndim and all(a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True))
    return value.layout == th.strided and same
