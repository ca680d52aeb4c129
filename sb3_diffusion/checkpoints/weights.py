"""Weights from a file that somebody else made: read without running code, and checked against what was built."""

import io
from collections.abc import Mapping
from typing import Any

import torch as th
from torch import nn

from sb3_diffusion.checkpoints.archives import open_archive
from sb3_diffusion.printable import quoted

MAX_INDEX_BYTES = 2**24
"""Largest size of the list of the tensors of a file."""


def load_tensors(content: bytes, where: str) -> Any:
    """
    :param content: What ``torch.save`` wrote
    :param where: File and member, for the messages
    :return: The tensors, on the CPU
    :raises ValueError: If there is anything in it but containers of tensors and numbers
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


def check_weights(where: str, state: Any) -> dict[str, th.Tensor]:
    """
    :param where: File and member, for the messages
    :param state: What :func:`load_tensors` returned
    :return: The same
    :raises ValueError: If it is anything but a mapping from names to dense tensors
    """
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{where} must be a mapping from names to tensors; the file is damaged.")
    for name, tensor in state.items():
        check_dense(f"{where}: {quoted(name)}", tensor)
    return dict(state)


def check_dense(where: str, tensor: Any) -> None:
    """
    :param where: File, member and name, for the messages
    :param tensor: What was found there
    :raises ValueError: If it is no tensor that has its numbers in the memory of this machine
    """
    if not _is_dense(tensor):
        raise ValueError(f"{where} must be a dense tensor; the file is damaged.")


def check_state(where: str, module: nn.Module, state: Any) -> None:
    """
    :param where: File and member, for the messages
    :param module: The network
    :param state: What is to be loaded into it
    :raises ValueError: If weights are missing, left over or of another shape or type
    """
    check_weights(where, state)
    expected = module.state_dict()
    check_names(where, "weights", set(expected), set(state))
    for name, tensor in expected.items():
        check_tensor(f"{where}: {name}", tensor, state[name])


def check_tensor(where: str, expected: th.Tensor, tensor: Any) -> None:
    """
    :param where: File, member and name, for the messages
    :param expected: The tensor that was built
    :param tensor: What is to be copied into it
    :raises ValueError: If it is no dense tensor of this shape and type
    """
    check_dense(where, tensor)
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
    :raises ValueError: If it belongs to other parameters, or has anything in it but numbers and tensors of their shapes
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
            raise ValueError(f"{where}: {quoted(name)} must be a number, not a {type(value).__name__}; the file is damaged.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in moments.items():
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(entries, dict):
            raise ValueError(f"{where}: state {quoted(index)} belongs to no parameter; the file is damaged.")
        for name, value in entries.items():
            if not (_is_setting(value) or _fits(value, parameters[index])):
                raise ValueError(
                    f"{where}: state {index}: {quoted(name)} has not the shape of its parameter; the file is damaged."
                )


def check_names(where: str, what: str, expected: set[str], found: set[str]) -> None:
    """
    :param where: File and member, for the messages
    :param what: What the names are of
    :param expected: Names that there have to be
    :param found: Names that there are
    :raises ValueError: Naming the first that is missing or left over
    """
    for verb, names in (("lacks the", expected - found), ("has an unexpected", found - expected)):
        if names:
            raise ValueError(f"{where} {verb} {what} {quoted(min(names, key=str))} ({len(names)} in all); get the file again.")


def _is_dense(value: Any) -> bool:
    plain = type(value) in (th.Tensor, nn.Parameter) and value.layout == th.strided
    return plain and value.device.type == "cpu" and not value.is_quantized


def _is_setting(value: Any) -> bool:
    # a pair of decay rates; deeper lists have no place, and could stand for more than fits into memory
    return all(map(_is_number, value)) if isinstance(value, list | tuple) else _is_number(value)


def _is_number(value: Any) -> bool:
    # a graph keeps the learning rate in a tensor
    return value is None or isinstance(value, bool | int | float) or (_is_dense(value) and value.numel() == 1)


def _fits(value: Any, parameter: th.Tensor) -> bool:
    """A moment of a parameter, or its sums over rows or columns."""
    same = _is_dense(value) and value.ndim == parameter.ndim
    return same and all(a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True))
