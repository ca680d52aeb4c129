"""Learning from data, and then from the world: stages, clocks, batches of both, exact continuation."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion import DACER, QSM, SDAC, OfflineDataset, load_agent, save_agent
from sb3_diffusion.checkpoints.trainings import TrainingCheckpoints
from sb3_diffusion.clock import environment_steps
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics, TrainingDiverged
from sb3_diffusion.core.update.parts import Stage, divided
from sb3_diffusion.data.batch import Batch
from tests.environments import PointEnv
from tests.helpers import act, assert_identical, flat_parameters, make, observations, point_data

ACTION_BOX: Any = PointEnv().action_space
DATA = point_data()


def offline(algorithm: type[OffPolicyDiffusion] = QSM, env: Any = None, **kwargs: Any) -> Any:
    return make(algorithm, env, **{"dataset": DATA, **kwargs})


def without_env(**kwargs: Any) -> Any:
    return make(QSM, **{"dataset": DATA, "with_env": False, **kwargs})


class Staged(QSM):
    """First the critics, on labels that were prepared, then the actor."""

    def stages(self) -> Sequence[Stage]:
        return [Stage("critic", ("critic",), 2, self.prepare), Stage("actor", ("actor",), 1)]

    def prepare(self) -> None:
        assert self.dataset is not None
        self.prepared = {"labels": th.arange(len(self.dataset)) + th.rand(())}

    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        if "labels" not in batch.extras:
            return super().critic_loss(batch)
        values = self.critic.q(batch.actions, self.critic.encode(batch.observations))
        return (values - batch.extras["labels"]).square().mean(), {"label": batch.extras["labels"].mean()}


class Seen(BaseCallback):
    """What a callback sees at every update."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.progress: list[float] = []

    def _on_step(self) -> bool:
        self.steps.append(self.num_timesteps)
        self.progress.append(self.model._current_progress_remaining)
        return True


# -- the two clocks --------------------------------------------------------------------------------------------------------


def test_callbacks_see_updates_and_the_model_keeps_its_steps(tmp_path: Path) -> None:
    model, seen = without_env(), Seen()
    model.learn_offline(12, callback=[seen, CheckpointCallback(5, str(tmp_path))])
    assert seen.steps == list(range(1, 13))
    assert model.num_timesteps == 0 and model._n_updates == 12
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["rl_model_10_steps.zip", "rl_model_5_steps.zip"]
    assert load_agent(tmp_path / names[0], device="cpu").num_timesteps == 0  # files keep the steps of environments


def test_logs_are_written_over_updates(tmp_path: Path) -> None:
    model = without_env()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn_offline(9, log_interval=3)
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    names = lines[0].split(",")
    table = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    assert [row["time/total_updates"] for row in table] == ["3", "6", "9"]
    assert all(float(row["train/critic_loss"]) > 0 for row in table)
    assert {row["time/stage"] for row in table} == {'"training"'}


def test_a_logged_value_is_the_mean_over_its_interval() -> None:
    class Counting(QSM):
        def after_update(self, batch: Batch) -> Metrics:
            return {"count": th.tensor(float(self._n_updates))}

    values: list[float] = []

    class Read(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            values.append(self.logger.name_to_value.get("train/count", 0.0))

    make(Counting, dataset=DATA).learn_offline(5, callback=Read(), log_interval=4)
    assert values == [0.0, 1.0, 1.5, 2.0, 0.0]  # the mean of 1, 2, 3 and 4 was written and forgotten


def test_evaluation_needs_an_environment_and_works_with_one(tmp_path: Path) -> None:
    evaluation = EvalCallback(DummyVecEnv([PointEnv]), eval_freq=4, n_eval_episodes=1, log_path=str(tmp_path), verbose=0)
    with pytest.raises(ValueError, match=r"EvalCallback .*set_env"):
        without_env().learn_offline(4, callback=evaluation)
    offline().learn_offline(8, callback=[evaluation])
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [4, 8]


# -- stages ----------------------------------------------------------------------------------------------------------------


def test_updates_are_divided_among_stages() -> None:
    assert divided(30, [2, 1]) == [20, 10]
    assert divided(10, [1, 1, 1]) == [3, 4, 3]
    assert divided(0, [1, 2]) == [0, 0]
    assert divided(7, [0, 1]) == [0, 7]


def test_stages_train_their_parts_with_their_own_schedule() -> None:
    model, seen = make(Staged, dataset=DATA), Seen()
    actor, critic = flat_parameters(model.actor), flat_parameters(model.critic)
    model.learn_offline(4, callback=seen)  # three of the critics, one of the actor
    assert not th.equal(critic, flat_parameters(model.critic)) and not th.equal(actor, flat_parameters(model.actor))
    np.testing.assert_allclose(seen.progress, [1.0, 2 / 3, 1 / 3, 1.0])

    model = make(Staged, dataset=DATA)
    model.learn_offline(1)
    assert th.equal(actor, flat_parameters(model.actor))
    assert set(model.prepared) == {"labels"}


def test_a_second_call_goes_on_with_the_last_stage_or_begins_again() -> None:
    model = make(Staged, dataset=DATA).learn_offline(3)
    critic, actor = flat_parameters(model.critic), flat_parameters(model.actor)
    model.learn_offline(2, reset_num_updates=False)
    assert th.equal(critic, flat_parameters(model.critic)) and not th.equal(actor, flat_parameters(model.actor))
    assert model._n_updates == 5
    model.learn_offline(1)
    assert not th.equal(critic, flat_parameters(model.critic))


def test_a_callback_ends_it_and_it_goes_on_where_it_stood() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 2

    model = make(Staged, dataset=DATA).learn_offline(6, callback=Stop())
    assert (model._stage, model._stage_updates) == (0, 2)
    model.learn_offline(6, reset_num_updates=False)
    assert (model._stage, model._stage_updates, model._n_updates) == (1, 2, 8)


# -- batches ---------------------------------------------------------------------------------------------------------------


def test_batches_hold_the_transitions_of_the_data_in_the_units_of_the_networks() -> None:
    low, high = np.array([-2.0, 0.0], np.float32), np.array([2.0, 3.0], np.float32)
    n = 7
    actions = np.random.default_rng(0).uniform(low, high, (n, 2)).astype(np.float32)
    obs = np.arange(n, dtype=np.float32)[:, None]
    terminated = np.arange(n) == 3
    data = OfflineDataset.from_arrays(
        obs, actions, np.arange(n), terminated, None, obs + 0.5, action_space=spaces.Box(low, high)
    )
    model = QSM("DiffusionPolicy", None, dataset=data, reward_transform="minus_one", gamma=0.9, device="cpu")
    batch: Any = model._data_sampler().sample(200)
    rows = batch.observations[:, 0].long()
    assert set(rows.tolist()) == set(range(n))
    th.testing.assert_close(batch.next_observations[:, 0], rows + 0.5)
    th.testing.assert_close(batch.rewards, rows - 1.0)
    th.testing.assert_close(batch.discounts, th.where(rows == 3, 0.0, 0.9))
    expected = th.as_tensor((actions - low) / (high - low) * 2 - 1)
    th.testing.assert_close(batch.actions, expected[rows])


@pytest.mark.parametrize("n_steps", [2, 4])
def test_n_step_returns_stop_at_the_end_of_an_episode(n_steps: int) -> None:
    data = point_data(40)
    model = offline(dataset=data, n_steps=n_steps, gamma=0.9)
    sampler = model._data_sampler()
    for row in range(len(data)):
        total, last = 0.0, row
        for step in range(n_steps):
            last = row + step
            total += 0.9**step * float(data.rewards[last])
            if last % 10 == 9:
                break
        discount = 0.0 if data.terminated[last] else 0.9 ** (last - row + 1)
        np.testing.assert_allclose(sampler._scalars[row].tolist(), [total, discount], rtol=1e-5, atol=1e-6)
        assert int(sampler._last[row]) == last


def test_new_experience_and_data_share_a_batch() -> None:
    model = offline(offline_fraction=0.25, learning_starts=30, policy_kwargs={})
    model.learn(20)
    marked = model.dataset.to("cpu")
    marked.rewards.fill_(1e3)
    model._sampler = None
    try:
        for fraction, expected in ((0.25, 2), (0.5, 4), (0.0, 0), (1.0, 8)):
            model.offline_fraction = fraction
            assert int((model.sample_batch(8).rewards == 1e3).sum()) == expected
        model.offline_fraction = "append"
        share = np.mean([(model.sample_batch(64).rewards == 1e3).float().mean().item() for _ in range(60)])
        assert abs(share - 60 / 80) < 0.03  # 60 transitions of the data, 20 new ones: 4 standard deviations
    finally:
        DATA.rewards.copy_(point_data().rewards)


def test_rewards_of_both_are_transformed_alike() -> None:
    model = offline(reward_transform="antmaze100", offline_fraction=0.0, learning_starts=30)
    model.learn(20)
    rewards = th.as_tensor(model.replay_buffer.rewards[:20, 0])
    batch = model.sample_batch(50)
    assert all((rewards * 100 - value).abs().min() < 1e-3 for value in batch.rewards)


def test_vec_normalize_applies_to_the_data_too() -> None:
    env: Any = VecNormalize(DummyVecEnv([PointEnv]))
    model = offline(env=env)
    env.obs_rms.mean += 1.0
    batch, raw = model._data_sampler().sample(30, env), model.dataset.observations
    expected = th.as_tensor(env.normalize_obs(raw.numpy()))
    assert all((expected - row).abs().amax(1).min() < 1e-5 for row in batch.observations)


# -- observations and rewards of the data -----------------------------------------------------------------------------------


def test_standardised_observations_stay_with_the_weights(tmp_path: Path) -> None:
    data: Any = point_data()
    for column, (scale, shift) in enumerate([(3.0, 5.0), (0.0, 2.0)][: data.observations.shape[1]]):
        data.states[:, column] = data.states[:, column] * scale + shift
    model = offline(dataset=data, normalize_observations=True).learn_offline(2)
    features = model.actor.extract_features(data.observations, model.actor.features_extractor)
    th.testing.assert_close(features.mean(0), th.zeros(features.shape[1]), atol=1e-5, rtol=0)
    spread = features.std(0, correction=0)
    assert spread[0] == pytest.approx(1.0, abs=1e-4) and th.isfinite(features).all()
    model.save(tmp_path / "model.zip")
    obs = observations(model.observation_space)
    loaded: Any
    for loaded in (load_agent(tmp_path / "model.zip", device="cpu"), type(model).load(tmp_path / "model.zip", device="cpu")):
        np.testing.assert_array_equal(act(loaded, obs), act(model, obs))
        assert loaded.dataset_identity == data.identity() and loaded._n_offline_updates == 2


def test_a_loaded_model_keeps_its_reward_transform_with_other_data(tmp_path: Path) -> None:
    model = offline(reward_transform="standardize").learn_offline(1)
    model.save(tmp_path / "model.zip")
    other = point_data(30, seed=1)
    loaded: Any = QSM.load(tmp_path / "model.zip", dataset=other, device="cpu")
    assert loaded.reward_transform == model.reward_transform and loaded.reward_transform["scale"] != 1.0
    assert loaded.dataset_identity == other.identity()
    with pytest.raises(ValueError, match=r"no data .*'arrays'.*set_dataset"):
        QSM.load(tmp_path / "model.zip", device="cpu").learn_offline(1)


# -- offline, then online ----------------------------------------------------------------------------------------------------


def test_the_first_steps_online_are_those_of_the_policy() -> None:
    taken: list[np.ndarray] = []

    class Record(PointEnv):
        def step(self, action: np.ndarray) -> Any:
            taken.append(action)
            return super().step(action)

    class Silent(QSM):
        def policy_settings(self) -> dict[str, Any]:
            return {"exploration_noise": 0.0}

    model = make(Silent, Record(), dataset=DATA, learning_starts=6).learn_offline(1)
    model.action_space.sample = None  # type: ignore[method-assign,assignment]
    model.learn(6)
    assert len(taken) == 6 and model._n_updates == 1


def test_learning_goes_on_with_an_environment_that_comes_later() -> None:
    model = without_env().learn_offline(2)
    with pytest.raises(ValueError, match="set_env"):
        model.learn(5)
    model.set_env(PointEnv())
    model.learn(15)
    assert model.num_timesteps == 15 and model._n_updates > 2


class PreciseEnv(PointEnv):
    """The same task, whose numbers are of double precision and within bounds."""

    def __init__(self, n_features: int | None = None, largest_action: float = 1.0) -> None:
        super().__init__()
        shape = self.observation_space.shape if n_features is None else (n_features,)
        self.observation_space = spaces.Box(-9.0, 9.0, shape, np.float64)
        self.action_space = spaces.Box(-largest_action, largest_action, self.action_space.shape, np.float32)

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return observation.astype(np.float64), info

    def step(self, action: np.ndarray) -> Any:
        observation, *rest = super().step(action)
        return observation.astype(np.float64), *rest


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("safely", [True, False])
def test_what_was_learned_from_data_alone_is_loaded_with_its_first_environment(
    tmp_path: Path, safely: bool, n_envs: int
) -> None:
    model, path = without_env().learn_offline(2), tmp_path / "agent.zip"
    save_agent(model, path) if safely else model.save(path)
    env = DummyVecEnv([PreciseEnv] * n_envs)
    loaded: Any = load_agent(path, env=env) if safely else QSM.load(path, env=env, device="cpu")
    assert loaded.observation_space == env.observation_space and loaded.replay_buffer.n_envs == n_envs
    assert_identical(flat_parameters(loaded.policy), flat_parameters(model.policy))
    loaded.learn(15)
    assert loaded.num_timesteps == 15


@pytest.mark.parametrize("kwargs", [{"n_features": 7}, {"largest_action": 2.0}])
@pytest.mark.parametrize("safely", [True, False])
def test_what_was_learned_from_data_alone_does_not_fit_every_environment(
    tmp_path: Path, safely: bool, kwargs: dict[str, Any]
) -> None:
    model, path = without_env().learn_offline(1), tmp_path / "agent.zip"
    save_agent(model, path) if safely else model.save(path)
    load: Any = load_agent if safely else QSM.load
    with pytest.raises(ValueError, match=r"(?i)(observation|action)[_ ]space"):
        load(path, env=PreciseEnv(**kwargs))


def test_an_agent_of_an_environment_is_loaded_with_equal_spaces_only(tmp_path: Path) -> None:
    make(QSM).save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        QSM.load(tmp_path / "agent.zip", env=PreciseEnv())


def test_environments_may_be_named() -> None:
    data = OfflineDataset.collect("Pendulum-v1", None, 60, seed=0)
    model: Any = QSM("MlpPolicy", None, dataset=data, policy_kwargs={"net_arch": [8]}, device="cpu", batch_size=8)
    model.set_env("Pendulum-v1")
    content = io.BytesIO()
    model.save(content)
    loaded: Any = QSM.load(content, env="Pendulum-v1", device="cpu")
    assert loaded.env.num_envs == 1


def test_schedules_begin_anew_or_stay() -> None:
    rates: list[float] = []

    class Rates(BaseCallback):
        def _on_step(self) -> bool:
            rates.append(self.model._current_progress_remaining)
            return True

    model = offline().learn_offline(4)
    model.learn(4, callback=Rates())
    assert rates == [1.0, 0.75, 0.5, 0.25]
    rates.clear()
    model.learn_offline(4)
    model.learn(3, callback=Rates(), continue_schedules=True)
    assert rates == [0.25] * 3


@pytest.mark.parametrize("algorithm", [SDAC, DACER])
def test_saved_in_between_it_ends_the_same(tmp_path: Path, algorithm: type[OffPolicyDiffusion]) -> None:
    def online(model: Any) -> Any:
        model.set_random_seed(5)
        model.learn(20)
        return model

    model = offline(algorithm).learn_offline(5)
    model.save(tmp_path / "model.zip")
    loaded: Any = algorithm.load(tmp_path / "model.zip", env=PointEnv(), dataset=DATA, device="cpu")
    assert_identical(online(model).get_parameters(), online(loaded).get_parameters())


# -- exact continuation -------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for the end of the process."""


class KillAt(BaseCallback):
    """Kills at an update, a step or both; what is restored with a callback does not matter to it."""

    at: tuple[int, int] | None = None

    def _on_step(self) -> bool:
        if KillAt.at is not None and self.model._n_updates == KillAt.at[0] and environment_steps(self.model) >= KillAt.at[1]:
            raise Killed
        return True


def run(folder: Path, kill: tuple[int, int] | None = None, resume: bool = False) -> Any:
    """Two stages and an online phase, with a checkpoint every second update or fifth step."""
    model = make(Staged, dataset=DATA)
    KillAt.at = kill

    def checkpoints(every: int) -> TrainingCheckpoints:
        return TrainingCheckpoints(folder, every=every, resume=resume, max_share=None, verbose=0)

    model.learn_offline(9, callback=[KillAt(), checkpoints(2)])
    model.learn(25, callback=[KillAt(), checkpoints(5)])
    return model


@pytest.mark.parametrize(
    ("update", "step"), [(3, -1), (6, -1), (7, -1), (9, -1), (12, 10)], ids=["stage", "end", "next", "last", "online"]
)
def test_a_killed_training_ends_as_if_nothing_had_happened(tmp_path: Path, update: int, step: int) -> None:
    expected = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", (update, step))
    resumed = run(tmp_path / "killed", resume=True)
    assert resumed._n_updates == expected._n_updates and resumed.num_timesteps == 25
    assert_identical(expected.get_parameters(), resumed.get_parameters())


# -- faults -------------------------------------------------------------------------------------------------------------------


def test_a_diverging_stage_names_the_quantity_before_anything_is_saved(tmp_path: Path) -> None:
    model = offline(learning_rate=1e30)
    with pytest.raises(
        TrainingDiverged, match=r"(critic|actor)_loss became .* at update \d+ \(stage 'training'\).*data is finite"
    ):
        model.learn_offline(50, callback=CheckpointCallback(1, str(tmp_path)))
    for path in tmp_path.iterdir():
        assert all(th.isfinite(p).all() for p in load_agent(path, device="cpu").policy.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"offline_fraction": 1.5}, ["offline_fraction=1.5", "between 0 and 1"]),
        ({"reward_transform": "return_range"}, ["reward_transform", "return_range_1000"]),
        ({"reward_transform": {"name": "none"}}, ["scale", "shift"]),
        ({"dataset": point_data(action_space=spaces.Box(-3.0, 3.0, ACTION_BOX.shape))}, ["action space", "action_space=..."]),
        ({"dataset": None, "normalize_observations": True}, ["normalize_observations", "dataset"]),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        offline(**arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_what_is_missing_is_named() -> None:
    with pytest.raises(TypeError, match=r"offline_fraction='appendix' must be .*'append'"):
        offline(offline_fraction="appendix")
    with pytest.raises(ValueError, match=r"QSM has no data .*dataset=\.\.\."):
        make(QSM).learn_offline(1)
    with pytest.raises(ValueError, match=r"env=None .*dataset"):
        QSM("DiffusionPolicy", None)
    with pytest.raises(ValueError, match="takes its numbers from data"):
        make(QSM, reward_transform="standardize").learn(5)
    with pytest.raises(ValueError, match=r"minus_one.*n_steps=3"):
        offline(reward_transform="minus_one", n_steps=3).learn(5)
    with pytest.raises(ValueError, match="total_updates=-1"):
        offline().learn_offline(-1)
    with pytest.raises(ValueError, match=r"observations of shape \(7,\)"):
        other = OfflineDataset.from_arrays(np.zeros((3, 7)), np.zeros((3, *ACTION_BOX.shape)), np.zeros(3), [0, 0, 1])
        offline(dataset=other)
