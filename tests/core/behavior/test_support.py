"""Support actions: drawn once for every state of the data, in the batches, and the same ones after an interruption."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion.checkpoints.trainings import TrainingCheckpoints
from sb3_diffusion.core.behavior.support import DrawsSupport, in_support_values
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.parts import Stage
from sb3_diffusion.data.batch import Batch
from tests.environments import PointEnv
from tests.helpers import assert_identical, make, make_filled, point_data, sample_batch

DATA = point_data()
N = len(DATA)


class Supported(DrawsSupport):
    """Imitates, then learns critics that bootstrap from imitated actions, whose values are those of a second table."""

    def stages(self) -> Sequence[Stage]:
        return [Stage("behavior", ("actor",), 1), Stage("critic", ("critic",), 2, self.draw_support)]

    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.actor.encode(batch.observations)
        return self.actor.denoising_error(batch.actions, context, self.randomness, "actor").mean(), {}

    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.critic_target.encode(batch.next_observations)
        return in_support_values(self.critic_target.q(self.next_support(batch), context).amin(0), 1.0), {}


def supported(**kwargs: Any) -> Any:
    return make(Supported, **{"dataset": DATA, "n_support": 3, **kwargs})


def count_draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which every table that is drawn adds a number."""
    drawn: list[int] = []
    original: Callable[..., Any] = Supported._drawn_support

    def draw(model: Any, key: str) -> Any:
        drawn.append(model._n_updates)
        return original(model, key)

    monkeypatch.setattr(Supported, "_drawn_support", draw)
    return drawn


def test_what_they_are_worth() -> None:
    values = th.tensor([[1.0, 2.0], [3.0, 3.0]])
    th.testing.assert_close(in_support_values(values, 1.0), th.tensor([1.731059, 3.0]))
    th.testing.assert_close(in_support_values(values, 0.0), th.tensor([1.5, 3.0]))
    th.testing.assert_close(in_support_values(values, 1e4), th.tensor([2.0, 3.0]))


def test_a_batch_has_those_of_its_states_and_of_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_diffusion.core.behavior.support.ROWS_AT_ONCE", {"cpu": 21})  # several pieces
    model = supported(n_steps=2).learn_offline(3)
    table = model.state_tables["support"]
    assert table.shape == (len(DATA.states), 3, 2) and table.dtype == th.float32 and table.abs().max() <= 1.0
    assert len(table.unique(dim=0)) == len(table)
    batch = model._data_sampler().sample(50, None, model.prepared, model.state_tables)
    for name, observations, actions in (
        ("support", batch.observations, model.support(batch)),
        ("next_support", batch.next_observations, model.next_support(batch)),
    ):
        rows = th.cat([(DATA.states == state).all(1).nonzero()[0] for state in observations])
        assert th.equal(actions, table[rows]) and actions is batch.extras[name]


def test_they_are_drawn_from_the_states_as_the_networks_see_them() -> None:
    """With VecNormalize and a generator of their own: the global one is not touched."""
    env = VecNormalize(DummyVecEnv([PointEnv]))
    moments: Any = env.obs_rms
    moments.mean[:] = 3.0
    model = make(Supported, env, dataset=DATA, n_support=3).learn_offline(1)
    th.manual_seed(5)
    first = model.draw_support()
    assert th.rand(()) == th.rand((), generator=th.Generator().manual_seed(5))
    assert model.draw_support() is first
    moments.mean[:] = 2.0
    assert not th.equal(model.draw_support(), first)
    moments.mean[:] = 3.0
    assert th.equal(model.draw_support(), first)


def test_new_weights_draw_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = count_draws(monkeypatch)
    model = supported().learn_offline(3)
    first = model.state_tables["support"].clone()
    model.learn_offline(3, reset_num_updates=False)  # the critics alone, for which the table is at hand
    assert drawn == [1] and th.equal(model.state_tables["support"], first)
    model.learn_offline(3)
    assert len(drawn) == 2 and not th.equal(model.state_tables["support"], first)


def test_online_they_are_drawn_for_the_batch() -> None:
    model = make_filled(Supported, n_support=3)
    batch = sample_batch(model)
    first, second = model.next_support(batch), model.next_support(batch)
    assert first.shape == (8, 3, 2) and not first.requires_grad and not th.equal(first, second)
    model.train(2, 8)


# -- interruptions ---------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for the end of the process."""


class KillAt(BaseCallback):
    """Kills at an update, once."""

    at: int | None = None

    def _on_step(self) -> bool:
        if self.model._n_updates == KillAt.at:
            KillAt.at = None
            raise Killed
        return True


def run(folder: Path, kill: int | None = None, resume: bool = False, **kwargs: Any) -> Any:
    KillAt.at = kill
    checkpoints = TrainingCheckpoints(folder, every=1, resume=resume, max_share=None, verbose=0)
    return supported(**kwargs).learn_offline(9, callback=[KillAt(), checkpoints])


@pytest.mark.parametrize("update", [2, 4, 7])
@pytest.mark.parametrize("kept", [False, True])
def test_a_training_goes_on_with_the_same(kept: bool, update: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(tmp_path / "whole").get_parameters()
    options: Any = {"support_folder": tmp_path / "support"} if kept else {}
    with pytest.raises(Killed):
        run(tmp_path / "killed", update, **options)
    drawn = count_draws(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = run(tmp_path / "killed", resume=True, **options)
    assert_identical(resumed.get_parameters(), expected)
    assert len(drawn) == (0 if kept and update > 4 else 1)  # until then, no checkpoint knows of them
    assert max(path.stat().st_size for path in (tmp_path / "killed").glob("arrays*")) < 20_000  # the table is not in there


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "foreign"])
def test_a_damaged_file_is_noticed_and_made_anew(damage: str, tmp_path: Path) -> None:
    expected = run(tmp_path / "whole").get_parameters()
    folder = tmp_path / "support"
    with pytest.raises(Killed):
        run(tmp_path / "killed", 6, support_folder=folder)
    (path,) = folder.iterdir()
    intact = path.read_bytes()
    content = bytearray(intact)
    content[100] ^= 64
    damaged = {"changed": bytes(content), "cut": intact[:-1], "foreign": np.ones(len(intact) // 4, np.float32).tobytes()}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match=r"support actions are drawn anew: .*support-"):
        resumed = run(tmp_path / "killed", resume=True, support_folder=folder)
    assert_identical(resumed.get_parameters(), expected)
    assert path.read_bytes() == intact


def test_what_is_drawn_with_another_rounding_is_told(tmp_path: Path) -> None:
    model = supported().learn_offline(2)
    model._support_record["checksum"] = "of another machine"
    assert model._lacks_prepared()
    model._support = None
    with pytest.warns(UserWarning, match="rounds differently"):
        model.learn_offline(2, reset_num_updates=False)
    assert not model._lacks_prepared()


def test_a_saved_model_finds_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = supported(support_folder=tmp_path).learn_offline(4)
    model.save(tmp_path / "model.zip")
    drawn = count_draws(monkeypatch)
    loaded = Supported.load(tmp_path / "model.zip", dataset=DATA, device="cpu")
    loaded.learn_offline(2, reset_num_updates=False)
    assert not drawn and th.equal(loaded.state_tables["support"], model.state_tables["support"])


def test_a_large_table_stays_in_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = supported().learn_offline(6)
    monkeypatch.setattr("sb3_diffusion.data.state_table.IN_MEMORY", 0)
    mapped = supported().learn_offline(6)
    assert_identical(mapped.get_parameters(), expected.get_parameters())


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"n_support=0.*at least 1"):
        supported(n_support=0)
