"""Widths of hidden layers: whatever takes some takes lists and tuples, and names itself when it is given something else."""

from typing import Any

import numpy as np
import pytest

from sb3_diffusion import DTQL, FPO, IDQL, IQL, PPO, QGPO, QIPO, QSM, DiffusionDICE
from tests import rollouts
from tests.helpers import make, point_data

ARGUMENTS = [
    *((algorithm, "policy_kwargs", "net_arch") for algorithm in (QSM, IQL, IDQL, QIPO, PPO, FPO)),
    *((algorithm, "policy_kwargs", name) for algorithm in (QSM, FPO) for name in ("state_arch", "time_arch")),
    (DTQL, None, "behavior_net_arch"),
    *((algorithm, None, "energy_net_arch") for algorithm in (QGPO, DiffusionDICE)),
]
WRONG: list[tuple[Any, str]] = [
    (64, "=64 must be a list of widths such as [256, 256], not an int."),
    ("64", "='64' must be a list of widths such as [256, 256], not a str."),
    (np.array(8), "=array(8) must be a list of widths such as [256, 256], not an ndarray."),
    ([8, 0], "[1]=0 must be at least 1."),
    ([-8], "[0]=-8 must be at least 1."),
    ([8.5], "[0]=8.5 must be an integer, not a float."),
    ([True], "[0]=True must be an integer, not a bool."),
    ([[8]], "[0]=[8] must be an integer, not a list."),
]


def build(algorithm: Any, where: str | None, name: str, value: Any) -> Any:
    """A tiny model with one argument of its own."""
    given = {name: value} if where is None else {where: {name: value}}
    if algorithm in (PPO, FPO):
        return rollouts.make(algorithm, **given)
    return make(algorithm, **({"dataset": point_data()} if algorithm not in (QSM, IQL) else {}), **given)


@pytest.mark.parametrize(("value", "words"), WRONG, ids=str)
@pytest.mark.parametrize(("algorithm", "where", "name"), ARGUMENTS)
def test_wrong_widths_are_named(algorithm: Any, where: str | None, name: str, value: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        build(algorithm, where, name, value)
    assert f"{name}{words}" in str(caught.value)


@pytest.mark.parametrize("value", [(8, 8), np.array([8, 8])], ids=str)
@pytest.mark.parametrize(("algorithm", "where", "name"), ARGUMENTS)
def test_every_sequence_of_whole_numbers_will_do(algorithm: Any, where: str | None, name: str, value: Any) -> None:
    build(algorithm, where, name, value)


@pytest.mark.parametrize("algorithm", [QSM, IQL, PPO])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"pi": [8]}, "net_arch={'pi': [8]} must"),
        ({"actor": [8]}, "net_arch={'actor': [8]} must"),
        ({"pi": [8], "qf": [8], "value": [8]}, "must be a list of widths, or one for each: dict(pi=[...], qf=[...])."),
        ({"pi": 8, "qf": [8]}, "net_arch['pi']=8 must be a list of widths"),
        ({"pi": [8], "qf": [0]}, "net_arch['qf'][0]=0 must be at least 1."),
    ],
    ids=str,
)
def test_widths_of_one_kind_of_network(algorithm: Any, value: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        build(algorithm, "policy_kwargs", "net_arch", value)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["activation_fn", "backbone", "layer_norm", "optimizer_class"])
def test_a_kind_of_network_that_does_not_exist(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(QSM, policy_kwargs={name: {"pie": None}})
    assert f"{name}={{'pie': None}} has an unknown key 'pie'; use dict(pi=..., qf=...)." in str(caught.value)
