"""A training that callbacks changed is resumed as it was: replaced schedules, frozen parameters."""

import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

from sb3_diffusion import QSM
from sb3_diffusion.checkpoints.trainings import TrainingCheckpoints
from sb3_diffusion.checkpoints.trainings.changes import describe_changes, restore_changes
from tests.environments import PointEnv
from tests.helpers import assert_identical, make


def sac() -> SAC:
    return SAC(
        "MlpPolicy", PointEnv(), learning_starts=10, batch_size=8, buffer_size=500, seed=0, policy_kwargs={"net_arch": [8]}
    )


def lower(model: Any) -> None:
    model.lr_schedule = LinearSchedule(1e-2, 0.0, 1.0)


def lower_the_actors(model: Any) -> None:
    model.actor_lr_schedule = LinearSchedule(1e-2, 0.0, 1.0)


def set_up_again(model: Any) -> None:
    model.learning_rate = 5e-3
    model._setup_lr_schedule()


def freeze(model: Any) -> None:
    next(model.critic.parameters()).requires_grad_(False)


class Changes(BaseCallback):
    """
    Does something once.

    :param change: What
    """

    def __init__(self, change: Any):
        super().__init__()
        self.change = change

    def _on_step(self) -> bool:
        if self.num_timesteps == 20:
            self.change(self.model)
        return True


class Stops(BaseCallback):
    """Interrupts a training like a signal does."""

    at: ClassVar[int] = 0  # not part of its state, which is resumed

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize(
    "build, change",
    [(build, change) for build in (lambda: make(QSM), sac) for change in (lower, set_up_again, freeze)]
    + [(lambda: make(QSM), lower_the_actors)],
)
def test_changes_survive_an_interruption(build: Any, change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(model: Any, resume: bool) -> Any:
        checkpoints = TrainingCheckpoints(tmp_path, every=10, max_share=None, resume=resume, verbose=0)
        return model.learn(50, callback=[Changes(change), checkpoints, Stops()])

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stops, "at", 38)
        train(build(), resume=False)
    resumed = train(build(), resume=True)
    whole = build().learn(50, callback=[Changes(change), Stops()])
    assert resumed.num_timesteps == whole.num_timesteps == 50
    assert_identical(resumed.policy.state_dict(), whole.policy.state_dict())
    assert describe_changes(resumed) == describe_changes(whole)


def test_what_was_not_changed_is_not_described() -> None:
    for rate in (1e-3, lambda progress: 1e-3, ConstantSchedule(1e-3), LinearSchedule(1e-3, 0.0, 1.0)):
        assert describe_changes(make(QSM, learning_rate=rate))["schedules"] == {}
    frozen = describe_changes(make(QSM))["frozen"]
    assert frozen and all(name.startswith("critic_target.") for name in frozen)


def test_a_function_is_missed_aloud() -> None:
    model = make(QSM)
    model.critic_lr_schedule = lambda progress: 1e-2
    changes = describe_changes(model)
    with pytest.warns(UserWarning, match=r"model\.critic_lr_schedule had been replaced by a function.*assign .* again"):
        restore_changes(make(QSM), changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_changes(make(QSM), None)  # a checkpoint of before
