"""Numbers that no method can use are refused at construction, with their name, value and a remedy, in every method alike."""

import inspect
import math
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_diffusion import DIME, DPPO, DPS, IDQL, PPO, QSM, QVPO
from sb3_diffusion.checkpoints.agents import load_agent, save_agent
from sb3_diffusion.checkpoints.trainings import TrainingCheckpoints
from sb3_diffusion.checkpoints.trainings.store import CheckpointStore
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.replay import TensorReplayBuffer
from sb3_diffusion.envs.wrappers import ActionRepeat
from sb3_diffusion.networks.norms import BatchRenorm
from sb3_diffusion.numeric import MAX_STEPS, integer, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.multiplier import Multiplier
from sb3_diffusion.taxonomy import Method, available_methods
from tests import every_method
from tests.environments import PointEnv
from tests.every_method import OTHERS
from tests.helpers import first_policy, make, make_filled

Algorithm = type[OffPolicyDiffusion]
NAN, INF = math.nan, math.inf

OUT_OF_RANGE: dict[str, list[Any]] = {
    "learning_rate": [-1e-3, NAN, INF, "3e-4", True, None],
    "actor_learning_rate": [-1e-3, NAN, "3e-4"],
    "critic_learning_rate": [-1e-3, NAN, "3e-4"],
    "buffer_size": [-1, 0, 1e6, "100"],
    "learning_starts": [-1, NAN, "100"],
    "batch_size": [-3, 0, 64.0, 2.5, "64", True, None, [64]],
    "tau": [-3, 1.5, NAN, "0.005"],
    "gamma": [7, -0.1, NAN, INF, "0.99", None],
    "train_freq": [0, -1, 1.5, (0, "step"), (-2, "episode"), "1"],
    "gradient_steps": [-2, 1.5, "1"],
    "n_steps": [0, -1, 2.0],
    "policy_delay": [0, -1, 1.5, "2"],
    "max_grad_norm": [-1, 0, NAN, "1"],
    "stats_window_size": [0, -1, 10.0],
    "seed": [-1, 1.5, 2**32, "7"],
}
"""Arguments of every method, with values that mean nothing."""


def refused(build: Any, name: str, value: Any) -> str:
    """The message of the refusal, which names the argument and its value."""
    with pytest.raises((TypeError, ValueError)) as caught:
        build()
    message = str(caught.value)
    assert message.startswith(f"{name}="), message
    shown = value[0] if isinstance(value, tuple) else value
    assert f"{name}={shown if isinstance(shown, float) else repr(shown)}" in message and "must be" in message
    return message


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_what_no_method_can_use_is_refused(algorithm: Algorithm, name: str) -> None:
    if name not in inspect.signature(algorithm).parameters:
        pytest.skip("the method has no such argument")
    for value in OUT_OF_RANGE[name]:
        refused(lambda value=value: make(algorithm, **{name: value}), name, value)


def numeric_arguments(function: Any) -> Iterator[tuple[str, bool]]:
    """Names of what is annotated as a number, and whether it may be ``None``."""
    for name, parameter in inspect.signature(function).parameters.items():
        kinds = str(parameter.annotation).split(" | ")
        if {"int", "float", "<class 'int'>", "<class 'float'>"} & set(kinds) and name != "verbose":
            yield name, "None" in kinds


def test_every_number_of_a_method_is_checked(algorithm: Algorithm) -> None:
    """By its annotation, so that an argument that is added later is found here."""
    arguments = dict(numeric_arguments(algorithm))
    assert {"gamma", "batch_size", "n_action_candidates", "max_grad_norm"} <= set(arguments)
    for name, may_be_none in arguments.items():
        for value in ("many", True, NAN, INF, -INF, [1], *(() if may_be_none else (None,))):
            if name == "max_grad_norm" and value is INF:  # no clipping, as in PyTorch
                continue
            with pytest.raises((TypeError, ValueError), match=rf"^{name}=.* must be "):
                make(algorithm, **{name: value})


@pytest.mark.parametrize("method", OTHERS, ids=lambda method: method.zoo_name)
def test_every_number_of_offline_and_on_policy_methods_is_checked(method: Method) -> None:
    arguments = dict(numeric_arguments(method.load()))
    assert {"gamma", "batch_size", "learning_rate", "max_grad_norm"} <= set(arguments)
    for name, may_be_none in arguments.items():
        for value in ("many", True, NAN, -INF, [1], *(() if may_be_none else (None,))):
            with pytest.raises((TypeError, ValueError), match=rf"^{name}=.* must be "):
                every_method.make(method.load(), **{name: value})


@pytest.mark.parametrize("method", available_methods(), ids=lambda method: method.zoo_name)
def test_words_are_no_switches(method: Method) -> None:
    """``normalize_observations="no"`` would switch them on."""
    parameters = inspect.signature(method.load()).parameters
    switches = [name for name, p in parameters.items() if p.annotation is bool and not name.startswith("_")]
    assert {"normalize_observations"} <= set(switches)
    for name in switches:
        for value in ("no", None, [True], 2):
            with pytest.raises(TypeError, match=rf"^{name}=.* must be True or False, not a "):
                every_method.make(method.load(), **{name: value})


@pytest.mark.parametrize("algorithm", [QSM, IDQL, DPPO, PPO])
def test_arguments_that_are_neither_numbers_nor_switches(algorithm: Any) -> None:
    for value in ("x", None, 1.5):
        refused(lambda value=value: every_method.make(algorithm, verbose=value), "verbose", value)
    assert every_method.make(algorithm, verbose=False).verbose == 0
    for kwargs in ([1], 3, "net_arch"):
        with pytest.raises(TypeError, match=r"^policy_kwargs=.* must be a dictionary"):
            algorithm(first_policy(algorithm).general_name, PointEnv(), policy_kwargs=kwargs)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"learning_rate_bounds": None}, r"^learning_rate_bounds=None must be two numbers"),
        ({"learning_rate_bounds": 1e-3}, r"^learning_rate_bounds=0\.001 must be two numbers"),
        ({"learning_rate_bounds": (1e-3,)}, r"^learning_rate_bounds=\(0\.001,\) must be two numbers"),
        ({"learning_rate_bounds": ("a", 1)}, r"^learning_rate_bounds='a' must be a number"),
        ({"privileged": "state"}, r"^privileged='state' must be a sequence of names"),
        ({"privileged": 3}, r"^privileged=3 must be a sequence of names"),
        ({"policy_kwargs": {"net_arch": {"pi": [16]}}}, r"net_arch=\{'pi': \[16\]\} must have widths of actor and value.*vf="),
        ({"policy_kwargs": {"net_arch": {"vf": [16]}}}, r"net_arch=\{'vf': \[16\]\} must have widths of actor and value.*vf="),
    ],
)
def test_pairs_and_names_of_on_policy_methods(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        every_method.make(DPPO, **kwargs)


POLICY_NUMBERS: dict[str, list[Any]] = {
    "n_critics": [0, 2.0, True, "2"],
    "diffusion_steps": [0, -1, 3.0, 10**7, "20", None],
    "sampling_steps": [0, 2.5, 10**7],
    "evaluation_steps": [0, 2.5, 10**7],
    "time_dim": [0, 7, 8.0, "64"],
    "output_gain": [-1.0, NAN, "1"],
    "output_scale": [0.0, -1.0, NAN, "1"],
    "dropout": [-0.1, 1.0, NAN, "0.1", True],
    "n_action_candidates": [0, 1.5, 10**9, True],
    "n_behavior_candidates": [0, 1.5, NAN],
    "exploration_noise": [-0.1, NAN, INF, "0.1", True],
}


@pytest.mark.parametrize("name", POLICY_NUMBERS)
def test_numbers_of_the_policy(name: str) -> None:
    for value in POLICY_NUMBERS[name]:
        refused(lambda value=value: make(QSM, policy_kwargs={name: value}), name, value)


def test_every_number_of_the_policy_is_in_the_table() -> None:
    asked = {name for name, _ in numeric_arguments(DiffusionPolicy)} - DiffusionPolicy.for_methods
    assert asked == set(POLICY_NUMBERS)


@pytest.mark.parametrize("net_arch", [[0], [16, -1], [16.0], ["16"], [True], {"pi": [16], "qf": [0]}])
def test_widths(net_arch: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^net_arch.* must "):
        make(QSM, policy_kwargs={"net_arch": net_arch})
    if isinstance(net_arch, list):
        with pytest.raises((TypeError, ValueError), match=r"^state_arch\[\d\]=.* must be "):
            make(QSM, policy_kwargs={"state_arch": net_arch})


@pytest.mark.parametrize(
    "algorithm, kwargs, name, value",
    [
        (DIME, {"policy_kwargs": {"process_kwargs": {"prior_std": "2"}}}, "prior_std", "2"),
        (DIME, {"n_atoms": 11.0}, "n_atoms", 11.0),
        (DIME, {"v_min": NAN}, "v_min", NAN),
        (DIME, {"batch_renorm": {"momentum": "0.9"}}, "momentum", "0.9"),
        (DIME, {"batch_renorm": {"warmup": -1}}, "warmup", -1),
        (QSM, {"replay_buffer_kwargs": {"n_steps": 0}}, "n_steps", 0),
        (DPS, {"score_injection": "online", "normalize_gradient": False, "temperature": 0}, "temperature", 0),
    ],
)
def test_numbers_further_down(algorithm: Algorithm, kwargs: dict[str, Any], name: str, value: Any) -> None:
    refused(lambda: make(algorithm, **kwargs), name, value)


@pytest.mark.parametrize(
    "build, name, value",
    [
        (lambda: TensorReplayBuffer(0, PointEnv().observation_space, PointEnv().action_space), "buffer_size", 0),
        (lambda: TensorReplayBuffer(9, PointEnv().observation_space, PointEnv().action_space, n_envs=0), "n_envs", 0),
        (lambda: TrainingCheckpoints("folder", every=cast(Any, "often")), "every", "often"),
        (lambda: TrainingCheckpoints("folder", max_share=0), "max_share", 0),
        (lambda: CheckpointStore("folder", keep=cast(Any, 1.5)), "keep", 1.5),
        (lambda: ActionRepeat(PointEnv(), repeat=cast(Any, "2")), "repeat", "2"),
        (lambda: Multiplier(1.0, 1e-3, low=-1.0), "low", -1.0),
        (lambda: Multiplier(cast(Any, "1"), 1e-3), "initial", "1"),
        (lambda: Multiplier(1.0, -1), "learning_rate", -1),
        (lambda: BatchRenorm(3, eps=-1.0), "eps", -1.0),
    ],
)
def test_numbers_of_buffers_wrappers_and_callbacks(build: Any, name: str, value: Any) -> None:
    refused(build, name, value)


def test_the_longest_chain_is_named() -> None:
    message = refused(lambda: make(QSM, policy_kwargs={"diffusion_steps": 10**7}), "diffusion_steps", 10**7)
    assert f"at most {MAX_STEPS}" in message
    kwargs = {"process": "discrete", "diffusion_steps": 10**7}
    refused(lambda: make(QSM, policy_kwargs=kwargs), "diffusion_steps", 10**7)


def test_an_automatic_coefficient_is_not_everywhere() -> None:
    """SAC's word, where a number is meant."""
    message = refused(lambda: make(QVPO, ent_coef="auto"), "ent_coef", "auto")
    assert "a number, not a str" in message and "function of the remaining progress" in message


def test_a_whole_float_is_told_how_to_write_it() -> None:
    assert "pass buffer_size=1000000." in refused(lambda: make(QSM, buffer_size=1e6), "buffer_size", 1e6)


def test_numbers_of_other_libraries_are_numbers(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    numbers: dict[str, Any] = {
        "batch_size": np.int64(8),
        "buffer_size": th.tensor(500),
        "gamma": np.float32(0.5),
        "tau": th.tensor(0.25),
        "learning_rate": np.float32(1e-3),
        "policy_delay": np.uint8(1),
        "max_grad_norm": np.array(1.0),
    }
    model = make(algorithm, **numbers, learning_starts=1e1).learn(12.0)
    for name, value in numbers.items():
        stored = getattr(model, name)
        assert type(stored) in (int, float) and stored == value.item()
    save_agent(model, tmp_path / "agent.zip")
    loaded: Any = load_agent(tmp_path / "agent.zip")
    assert loaded.gamma == 0.5


def test_bounds_belong_to_the_range(algorithm: Algorithm) -> None:
    for ends in ({"gamma": 0, "tau": 0}, {"gamma": 1, "tau": 1, "learning_starts": 0, "gradient_steps": -1}):
        make(algorithm, **ends, batch_size=1, buffer_size=1, stats_window_size=1, seed=0)
    make(algorithm, train_freq=(1, "episode"), gradient_steps=0, learning_rate=0.0, seed=2**32 - 1)


@pytest.mark.parametrize("value", [-5, NAN, "100", None, True])
def test_a_budget_that_is_none(value: Any) -> None:
    model = make(QSM)
    refused(lambda: model.learn(value), "total_timesteps", value)
    assert model.num_timesteps == 0 and model.replay_buffer.pos == 0


def test_budgets_that_stable_baselines3_takes() -> None:
    assert make(QSM).learn(0).num_timesteps == 0
    assert make(QSM).learn(3.0).num_timesteps == 3
    assert make(QSM).learn(INF, callback=lambda found, _: found["self"].num_timesteps < 4).num_timesteps == 4


@pytest.mark.parametrize("value", [-1e-3, NAN, INF])
@pytest.mark.parametrize("name", ["learning_rate", "actor_learning_rate", "critic_learning_rate"])
def test_schedules_are_checked_when_they_are_asked(name: str, value: float) -> None:
    model = make_filled(QSM, **{name: lambda progress: 1e-3 if progress > 0.5 else value})
    model._current_progress_remaining = 0.25
    with pytest.raises(ValueError, match=rf"{name}={value} must be .*remaining progress of 0\.25"):
        model.train(1, 8)


def test_schedule_of_a_coefficient() -> None:
    with pytest.raises(ValueError, match=r"ent_coef=-1\.0 must be at least 0"):
        make(QVPO, ent_coef=lambda progress: -progress)
    model = make_filled(QVPO, ent_coef=LinearSchedule(0.5, -0.5, 1.0))
    model._current_progress_remaining = 0.25
    with pytest.raises(ValueError, match=r"ent_coef=-0\.25 must be at least 0"):
        model.train(1, 8)


def test_kinds_and_ends() -> None:
    assert integer("n", np.int8(3), 1, 3) == 3 and type(integer("n", np.int8(3))) is int
    assert real("x", Fraction(1, 2), 0, 1) == 0.5 and real("x", 2, above=1, below=3) == 2
    for text, build in {
        "x=1.0 must be in [0, 1); lower it.": lambda: real("x", 1.0, 0, below=1, remedy="lower it"),
        "x=0.0 must be in (0, 1].": lambda: real("x", 0.0, above=0, high=1),
        "x=0 must be positive.": lambda: real("x", 0, above=0),
        "x=2 must be larger than 2.": lambda: real("x", 2, above=2),
        "x=3 must be at most 2.": lambda: real("x", 3, high=2),
        "x=3 must be smaller than 3.": lambda: real("x", 3, below=3),
        "x=nan must be finite.": lambda: real("x", NAN),
        "n=0 must be at least 1.": lambda: integer("n", 0, 1, 5),
        "n=6 must be at most 5.": lambda: integer("n", 6, 1, 5),
    }.items():
        with pytest.raises(ValueError) as caught:
            build()
        assert str(caught.value) == text
    for value in (np.bool_(True), th.tensor([1, 2]), np.zeros(1), 1j, "1", None):
        with pytest.raises(TypeError, match=r"^x=.* must be a number, not "):
            real("x", value)
        with pytest.raises(TypeError, match=r"^n=.* must be an integer, not "):
            integer("n", value)
