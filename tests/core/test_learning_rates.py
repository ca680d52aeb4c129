"""The learning rate that is logged is the one that is used, whoever sets it and when."""

import inspect
import pathlib
from typing import Any

import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

from sb3_diffusion import DACER, DIME, DPMD
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.taxonomy import Method
from tests import every_method
from tests.cases import case_of
from tests.environments import PointEnv
from tests.every_method import OTHERS
from tests.helpers import make, make_filled, with_logger

Algorithm = type[OffPolicyDiffusion]


def rates(model: Any) -> tuple[float, float]:
    """Learning rates of actor and critics after an update; what is logged has to say the same."""
    model.train(1, 8)
    actor, critic = (float(network.optimizer.param_groups[0]["lr"]) for network in (model.actor, model.critic))
    logged = model.logger.name_to_value
    common = logged["train/learning_rate"]
    assert logged.get("train/actor_learning_rate", common) == actor
    assert logged.get("train/critic_learning_rate", common) == critic
    model.logger.name_to_value.clear()
    return actor, critic


class ChangesTheRate(BaseCallback):
    """Replaces the schedule in the middle of a training."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 15:
            self.model.lr_schedule = ConstantSchedule(5e-3)
        return True


def test_a_callback_replaces_the_schedule(algorithm: Algorithm) -> None:
    model = make(algorithm).learn(20, callback=ChangesTheRate())
    assert model.actor.optimizer.param_groups[0]["lr"] == model.critic.optimizer.param_groups[0]["lr"] == 5e-3
    model.lr_schedule = LinearSchedule(1e-2, 0.0, 1.0)
    model._current_progress_remaining = 0.5
    assert rates(model) == (5e-3, 5e-3)


class Replaces(BaseCallback):
    """Replaces the schedule at the first step or update."""

    def _on_step(self) -> bool:
        self.model.lr_schedule = ConstantSchedule(5e-3)
        return True


@pytest.mark.parametrize("method", OTHERS, ids=lambda method: method.zoo_name)
def test_offline_and_on_policy_methods_obey_too(method: Method) -> None:
    none = {f"{name}_learning_rate": None for name in ("actor", "critic", "value", "behavior", "step_value", "energy")}
    known = inspect.signature(method.load()).parameters
    model = every_method.make(method.load(), **{name: rate for name, rate in none.items() if name in known})
    every_method.train(every_method.train(model, Replaces()))
    for part in model.parts():
        assert float(part.optimizer.param_groups[0]["lr"]) == 5e-3, part.name
        setattr(model, f"{part.name}_lr_schedule", ConstantSchedule(7e-3))
    every_method.train(model)
    assert {part.optimizer.param_groups[0]["lr"] for part in model.parts()} == {7e-3}


def test_own_rates_of_the_networks() -> None:
    model = make_filled(DACER, learning_rate=1e-3, actor_learning_rate=2e-3)
    assert rates(model) == (2e-3, 1e-3)
    model.lr_schedule = ConstantSchedule(3e-3)  # for those without a rate of their own
    assert rates(model) == (2e-3, 3e-3)
    model.actor_learning_rate = 4e-3
    model.critic_learning_rate = lambda progress: 5e-3
    assert rates(model) == (4e-3, 5e-3)
    model.actor_lr_schedule = model.critic_lr_schedule = lambda progress: 6e-3
    assert rates(model) == (6e-3, 6e-3)
    model.actor_learning_rate, model.critic_learning_rate, model.learning_rate = None, 7e-3, 8e-3
    model._setup_lr_schedule()
    assert rates(model) == (8e-3, 7e-3)
    model.actor_learning_rate = 8e-3  # the same number, but not the common one
    assert rates(model) == (8e-3, 7e-3)


def test_as_in_stable_baselines3(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    """What counts after ``load``: ``learning_rate``, of the file or in its place; never a schedule that was assigned."""
    custom = {"learning_rate": 2e-3, "lr_schedule": lambda progress: 1.0}
    found = []
    for cls in (SAC, algorithm):
        model: Any = make(algorithm) if cls is algorithm else SAC("MlpPolicy", PointEnv(), learning_rate=1e-3, device="cpu")
        model.lr_schedule = ConstantSchedule(0.5)
        model.save(tmp_path / cls.__name__)
        for settings in ({}, {"custom_objects": custom}, {"learning_rate": 3e-3}):
            loaded = cls.load(tmp_path / cls.__name__, env=PointEnv(), device="cpu", **settings)
            loaded.learning_starts = 10**6
            with_logger(loaded.learn(20))
            loaded.train(1, 8)
            found.append(loaded.critic.optimizer.param_groups[0]["lr"])
    assert found[:3] == found[3:] == [1e-3, 2e-3, 3e-3]


@pytest.mark.parametrize(
    "algorithm, argument, find",
    [
        (DACER, "alpha_learning_rate", lambda model: model.noise_factor),
        (DIME, "alpha_learning_rate", lambda model: model.temperature),
        (DPMD, "temperature_learning_rate", lambda model: model.temperature),
    ],
)
def test_rates_of_temperatures(algorithm: Algorithm, argument: str, find: Any, tmp_path: pathlib.Path) -> None:
    """The optimizer's state, which is loaded after it is built, has the rate of before."""
    rare = case_of(algorithm).every_update
    model = make_filled(algorithm, policy_delay=1, **{argument: 1e-2}, **rare)
    model.train(1, 8)
    model.save(tmp_path / "model")
    settings: dict[str, Any] = {argument: 3e-2}
    loaded: Any = algorithm.load(tmp_path / "model", env=PointEnv(), device="cpu", **settings)
    loaded.replay_buffer = model.replay_buffer
    for one, rate in ((model, 1e-2), (with_logger(loaded), 3e-2)):
        one.train(1, 8)
        assert find(one).optimizer.param_groups[0]["lr"] == rate
    setattr(loaded, argument, 0.0)
    number = [float(parameter) for parameter in find(loaded).parameters()]
    loaded.train(2, 8)
    assert number == [float(parameter) for parameter in find(loaded).parameters()] and number
