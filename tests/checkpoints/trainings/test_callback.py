"""Trainings that were interrupted, rebuilt and continued equal those that ran through."""

import itertools
import json
import resource
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import CSVOutputFormat, Logger
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_diffusion.checkpoints.tagged_json import decode, encode
from sb3_diffusion.checkpoints.trainings import CannotContinue, TrainingCheckpoints, TrainingStopped
from sb3_diffusion.checkpoints.trainings.restoration import Restoration, SnapshotServer
from sb3_diffusion.checkpoints.trainings.snapshot import Snapshot
from sb3_diffusion.checkpoints.trainings.store import CheckpointStore, DamagedCheckpoint
from sb3_diffusion.taxonomy import available_methods
from tests.cases import case_of
from tests.environments import PointEnv
from tests.helpers import assert_identical, make

ALGORITHMS = [method.load() for method in available_methods() if method.setting != "on-policy"]  # whose contract has it
Build = Callable[[VecEnv], Any]


def tiny(**kwargs: Any) -> dict[str, Any]:
    """Arguments of an algorithm of Stable-Baselines3, some of which write into their policy_kwargs."""
    return {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0, "batch_size": 10, **kwargs}


class Interruption(RuntimeError):
    """What a crash does to the test."""


class Crash(BaseCallback):
    """
    Ends the training in the middle of a rollout.

    :param step: When; texts are settings, which a checkpoint does not bring back
    :param request: Asks for the end instead, like the handler of a signal
    """

    def __init__(self, step: int | None, request: Callable[..., None] | None = None):
        super().__init__()
        self.step = str(step)
        self.request = request
        self.ends: list[int] = []

    def _on_step(self) -> bool:
        if self.locals["dones"][0]:
            self.ends.append(self.num_timesteps)
        if str(self.num_timesteps) == self.step:
            if self.request is None:
                raise Interruption
            self.request(stop=True)
        return True


def environment(
    env_id: Any = "Pendulum-v1",
    n_envs: int = 1,
    monitor_dir: Path | None = None,
    wrap: Callable[[VecEnv], VecEnv] = lambda venv: venv,
    seed: int = 0,
    **kwargs: Any,
) -> VecEnv:
    venv = make_vec_env(
        env_id, n_envs=n_envs, seed=seed, monitor_dir=None if monitor_dir is None else str(monitor_dir), **kwargs
    )
    return wrap(venv)


def train(
    folder: Path,
    build: Build,
    steps: int = 120,
    crash_at: int | None = None,
    resume: bool = False,
    every: int = 30,
    verbose: int = 0,
    ask: bool = False,
    eval_freq: int = 50,
    **env_kwargs: Any,
) -> tuple[Any, EvalCallback]:
    model = build(environment(monitor_dir=folder, **env_kwargs))
    (folder / "csv").mkdir(parents=True, exist_ok=True)
    model.set_logger(Logger(str(folder), [CSVOutputFormat(str(folder / "csv" / "progress.csv"))]))
    evaluation = EvalCallback(
        environment(seed=7, **{**env_kwargs, "n_envs": 1, "vec_env_cls": None, "vec_env_kwargs": None}),
        n_eval_episodes=1,
        eval_freq=eval_freq,
        log_path=str(folder),
        best_model_save_path=str(folder),
        verbose=0,
    )
    checkpoints = TrainingCheckpoints(
        folder / "resume", every=every, resume=resume, files=[folder / "best_model.zip"], max_share=None, verbose=verbose
    )
    crash = Crash(crash_at, checkpoints.request if ask else None)
    try:
        model.learn(steps, callback=[evaluation, crash, checkpoints], log_interval=1)
    except TrainingStopped:
        assert checkpoints.stopped and checkpoints.last_step == model.num_timesteps
    return model, evaluation


def interrupted(folder: Path, build: Build, crash_at: int, **kwargs: Any) -> tuple[Any, EvalCallback]:
    with pytest.raises(Interruption):
        train(folder, build, crash_at=crash_at, **kwargs)
    return train(folder, build, resume=True, **kwargs)


def table(path: Path, *times: str) -> list[dict[str, str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def replay_contents(model: Any) -> dict[str, Any]:
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None:
        return {}
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    contents = {name: getattr(buffer, name, None) for name in names}
    return {name: value for name, value in contents.items() if value is not None} | {"at": np.array([buffer.pos, buffer.full])}


def assert_same_arrays(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same_arrays(left[key], right[key])
    else:
        np.testing.assert_array_equal(left, right)


def assert_same_training(tmp_path: Path, whole: tuple[Any, EvalCallback], pieces: tuple[Any, EvalCallback]) -> None:
    (left, left_evaluation), (right, right_evaluation) = whole, pieces
    assert_identical(left.get_parameters(), right.get_parameters())
    assert_same_arrays(replay_contents(left), replay_contents(right))
    for name in ("num_timesteps", "_episode_num", "_n_updates", "_current_progress_remaining"):
        assert getattr(left, name) == getattr(right, name), name
    assert left_evaluation.evaluations_results == right_evaluation.evaluations_results
    assert left_evaluation.best_mean_reward == right_evaluation.best_mean_reward
    times = ("time/fps", "time/time_elapsed")
    progress = [table(tmp_path / name / "csv" / "progress.csv", *times) for name in ("whole", "pieces")]
    assert len(progress[0]) > 1 and progress[0] == progress[1]
    for path in sorted((tmp_path / "whole").glob("*.monitor.csv")):
        assert table(path, "t") == table(tmp_path / "pieces" / path.name, "t")


def check(tmp_path: Path, build: Build, crash_at: int = 101, **kwargs: Any) -> None:
    whole = train(tmp_path / "whole", build, **kwargs)
    pieces = interrupted(tmp_path / "pieces", build, crash_at, **kwargs)
    assert_same_training(tmp_path, whole, pieces)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_every_algorithm(algorithm: Any, tmp_path: Path) -> None:
    rare = case_of(algorithm).every_update
    settings = {"learning_starts": 15, "buffer_size": 40, "learning_rate": lambda progress: 1e-3 * progress, **rare}
    short = {"steps": 60, "every": 15, "crash_at": 51, "eval_freq": 25}
    check(tmp_path, lambda env: make(algorithm, env, **settings), env_id=PointEnv, **short)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0", "Hopper-v5", "Ant-v5", "HalfCheetah-v5"])
def test_environments(env_id: str, tmp_path: Path) -> None:
    if env_id.endswith("-v5"):
        pytest.importorskip("mujoco")
    train_env = {"env_kwargs": {"max_episode_steps": 37}}
    check(tmp_path, lambda env: make(ALGORITHMS[0], env), crash_at=100, env_id=env_id, **train_env)


def sac(env: VecEnv, **kwargs: Any) -> SAC:
    return SAC("MlpPolicy", env, learning_starts=20, **tiny(**{"buffer_size": 75, **kwargs}))


def ppo(env: VecEnv, **kwargs: Any) -> PPO:
    return PPO("MlpPolicy", env, n_steps=10, n_epochs=1, **tiny(**kwargs))


def noisy_td3(env: VecEnv) -> TD3:
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2))
    return TD3("MlpPolicy", env, learning_starts=20, buffer_size=75, action_noise=noise, **tiny())


def two_step_td3(env: VecEnv) -> TD3:
    return TD3("MlpPolicy", env, learning_starts=20, buffer_size=75, n_steps=2, train_freq=(7, "step"), **tiny())


def sharing_sac(env: VecEnv) -> SAC:
    kwargs: dict[str, Any] = {"replay_buffer_class": ReplayBuffer, "optimize_memory_usage": True}
    return sac(env, replay_buffer_kwargs={"handle_timeout_termination": False}, **kwargs)


def sharing(env: VecEnv) -> Any:
    return make(
        ALGORITHMS[0],
        env,
        buffer_size=75,
        optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
    )


def hindsight(env: VecEnv) -> Any:
    return make(ALGORITHMS[0], env, policy="MultiInputPolicy", replay_buffer_class=HerReplayBuffer, learning_starts=15)


def flipping_bits() -> gym.Env:
    return BitFlippingEnv(n_bits=3, continuous=True)


SETUPS: dict[str, tuple[Build, dict[str, Any]]] = {
    "SAC": (sac, {}),
    "SAC, two environments, normalized": (sac, {"n_envs": 2, "wrap": VecNormalize}),
    "TD3, correlated noise": (noisy_td3, {}),
    "TD3, two environments with noise": (noisy_td3, {"n_envs": 2}),
    "TD3, two-step returns": (two_step_td3, {}),
    "SAC, each observation stored once": (sharing_sac, {}),
    "own buffer, each observation stored once": (sharing, {}),
    "PPO, two environments, normalized": (ppo, {"n_envs": 2, "wrap": VecNormalize, "steps": 200}),
    "PPO, state-dependent noise": (lambda env: ppo(env, use_sde=True, sde_sample_freq=4), {}),
    "SAC, state-dependent noise": (lambda env: sac(env, use_sde=True, train_freq=(7, "step")), {}),
    "stacked frames": (sac, {"wrap": lambda venv: VecFrameStack(venv, 3)}),
    "hindsight replay": (hindsight, {"env_id": flipping_bits}),
    "Dict observations": (lambda env: make(ALGORITHMS[0], env), {"env_kwargs": {"observation": "dict"}}),
}


@pytest.mark.parametrize("name", SETUPS)
def test_setups(name: str, tmp_path: Path) -> None:
    build, kwargs = SETUPS[name]
    crash_at = 102 if kwargs.get("n_envs", 1) == 2 else 101
    check(tmp_path, build, crash_at=crash_at, **{"env_id": PointEnv, **kwargs})


def test_environments_in_processes(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"n_envs": 2, "vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
    kwargs["wrapper_class"] = SnapshotServer
    check(tmp_path, ppo, crash_at=102, steps=120, **kwargs)


def test_deepmind_control(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    from sb3_diffusion.envs import make_dmc

    def short() -> gym.Env:
        return gym.wrappers.TimeLimit(make_dmc("hopper", "stand"), 30)

    check(tmp_path, lambda env: make(ALGORITHMS[0], env), crash_at=70, steps=80, every=20, env_id=short)


def test_deepmind_control_task_that_changes_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dm_control")
    from sb3_diffusion.envs import make_dmc

    def short() -> gym.Env:
        return gym.wrappers.TimeLimit(make_dmc("reacher", "easy"), 30)

    with pytest.raises(Interruption):
        train(tmp_path, sac, steps=80, crash_at=70, every=20, env_id=short)
    model, evaluation = train(tmp_path, sac, steps=80, resume=True, verbose=1, env_id=short)
    assert "an unchanged model" in capsys.readouterr().out
    assert model.num_timesteps == 80 and evaluation.evaluations_timesteps == [50]


class OpaqueEnv(PointEnv):
    """Keeps a part of its state where nobody can look."""

    def __init__(self) -> None:
        super().__init__()
        self.world = iter(range(10**9))


def test_opaque_environment_begins_a_new_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interruption):
        train(tmp_path, sac, crash_at=57, every=23, env_id=OpaqueEnv)
    model = sac(environment(OpaqueEnv, monitor_dir=tmp_path))
    crash = Crash(None)
    checkpoints = TrainingCheckpoints(tmp_path / "resume", resume=True)
    model.learn(80, callback=[EvalCallback(environment(OpaqueEnv), verbose=0), crash, checkpoints])
    out = capsys.readouterr().out
    assert "Continuing at step 46." in out
    assert "new episodes begin: envs.0.env.world" in out
    # episodes have 10 steps, counted from the checkpoint
    assert crash.ends == [10, 20, 30, 40, 56, 66, 76]
    buffer = model.replay_buffer
    assert buffer is not None and buffer.dones[45, 0] == buffer.timeouts[45, 0] == 1.0


def test_other_callbacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Interruption):
        train(tmp_path, sac, crash_at=57, env_id=PointEnv)
    checkpoints = TrainingCheckpoints(tmp_path / "resume", resume=True)
    with pytest.raises(ValueError, match=r"one of another callback: .* of 3 objects\. Build the same callback again"):
        sac(environment(PointEnv)).learn(100, callback=[Crash(None), checkpoints])


def test_interrupted_twice_and_a_damaged_checkpoint(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"env_id": PointEnv, "every": 10}
    whole = train(tmp_path / "whole", sac, **kwargs)
    folder = tmp_path / "pieces"
    with pytest.raises(Interruption):
        train(folder, sac, crash_at=47, **kwargs)
    with pytest.raises(Interruption):
        train(folder, sac, crash_at=85, resume=True, **kwargs)
    newest = max((folder / "resume").glob("checkpoint_*.json"))
    parameters = json.loads(newest.read_text())["body"]["parts"]["parameters.pt"]["file"]
    path = folder / "resume" / parameters
    path.write_bytes(path.read_bytes()[:-10])
    assert_same_training(tmp_path, whole, train(folder, sac, resume=True, **kwargs))


# -- beyond the end, and on request ----------------------------------------------------------------------------------------


def test_extended_equals_longer(tmp_path: Path) -> None:
    """SAC and PPO, whose loops differ; their rates are constant, so that the number of steps decides nothing else."""
    for name, build in (("sac", sac), ("ppo", ppo)):
        whole = train(tmp_path / name / "whole", build, env_id=PointEnv)
        pieces = tmp_path / name / "pieces"
        train(pieces, build, steps=60, env_id=PointEnv)
        assert_same_training(tmp_path / name, whole, train(pieces, build, resume=True, env_id=PointEnv))


def test_complete_training_is_not_trained_on(tmp_path: Path) -> None:
    for name, build in (("sac", sac), ("ppo", ppo)):
        folder = tmp_path / name
        model, _ = train(folder, build, steps=60, env_id=PointEnv)
        monitor = (folder / "0.monitor.csv").read_bytes()
        again, evaluation = train(folder, build, steps=60, resume=True, env_id=PointEnv)
        assert again.num_timesteps == 60 and evaluation.evaluations_timesteps == [50]
        assert_identical(again.get_parameters(), model.get_parameters())
        assert_same_arrays(replay_contents(again), replay_contents(model))
        assert len((folder / "0.monitor.csv").read_bytes().splitlines()) == len(monitor.splitlines())


@pytest.mark.parametrize("setup", ["sac", "ppo", "sdac"])
def test_ended_on_request(setup: str, tmp_path: Path) -> None:
    """At the start of the next rollout: the agent is the one from which the training continues."""
    build: Build = {"sac": sac, "ppo": ppo, "sdac": lambda env: make(ALGORITHMS[0], env)}[setup]
    whole = train(tmp_path / "whole", build, env_id=PointEnv)
    folder = tmp_path / "pieces"
    model, _ = train(folder, build, crash_at=47, ask=True, env_id=PointEnv)
    assert 47 <= model.num_timesteps < 60 and CheckpointStore(folder / "resume").steps()[-1] == model.num_timesteps
    same, _ = train(folder, build, steps=model.num_timesteps, resume=True, env_id=PointEnv)
    assert_identical(same.get_parameters(), model.get_parameters())
    assert_same_training(tmp_path, whole, train(folder, build, resume=True, env_id=PointEnv))


def test_a_checkpoint_on_request_does_not_end(tmp_path: Path) -> None:
    checkpoints = TrainingCheckpoints(tmp_path, every=1000, keep=3)
    checkpoints.request(stop=False)
    sac(environment(PointEnv)).learn(20, callback=checkpoints)
    assert checkpoints.complete and not checkpoints.stopped and checkpoints.store.steps() == [0, 20]


def test_request_without_checkpoints_ends_all_the_same(tmp_path: Path) -> None:
    checkpoints = TrainingCheckpoints(tmp_path, every=0)
    checkpoints.request(stop=True)
    with pytest.raises(TrainingStopped):
        sac(environment(PointEnv)).learn(20, callback=checkpoints)
    assert checkpoints.stopped and checkpoints.last_step is None and not list(tmp_path.iterdir())


def test_ended_by_a_callback_has_no_checkpoint_at_the_end(tmp_path: Path) -> None:
    """In the middle of a rollout the last transition is not stored yet."""
    checkpoints = TrainingCheckpoints(tmp_path, every=1000)
    sac(environment(PointEnv)).learn(20, callback=[StopAt(13), checkpoints])
    assert checkpoints.complete and checkpoints.store.steps() == [0]


class StopAt(BaseCallback):
    """Like StopTrainingOnRewardThreshold."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda env: sac(env, policy_kwargs={"net_arch": [9]}), "one of other networks: .*size mismatch.*same networks again"),
        (lambda env: sac(env, buffer_size=76), "is one of a replay buffer for 75 steps, not 76"),
        (lambda env: sac(env, gamma=0.5, learning_rate=1e-2), None),
    ],
)
def test_another_algorithm(change: Build, message: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, sac, steps=30, env_id=PointEnv)
    if message is None:
        train(tmp_path, change, steps=60, resume=True, verbose=1, env_id=PointEnv)
        said = capsys.readouterr().out
        assert "The settings are those of the checkpoint: " in said
        assert "gamma 0.99 (not 0.5)" in said and "learning_rate 0.0003 (not 0.01)" in said
        return
    with pytest.raises(CannotContinue, match=message) as error:
        train(tmp_path, change, steps=60, resume=True, env_id=PointEnv)
    assert "\n" not in str(error.value)


def test_another_number_of_environments(tmp_path: Path) -> None:
    train(tmp_path, ppo, steps=30, env_id=PointEnv)
    with pytest.raises(CannotContinue, match="is one of 1 environments, not 2"):
        train(tmp_path, ppo, steps=60, resume=True, env_id=PointEnv, n_envs=2)


def test_a_progress_bar_may_be_added(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with pytest.raises(Interruption):
        train(tmp_path, sac, crash_at=57, env_id=PointEnv)
    model = sac(environment(PointEnv, monitor_dir=tmp_path))
    checkpoints = TrainingCheckpoints(tmp_path / "resume", resume=True)
    evaluation = EvalCallback(environment(PointEnv), verbose=0)
    model.learn(60, callback=[evaluation, Crash(None), checkpoints], progress_bar=True)
    assert model.num_timesteps == 60
    assert "60/60" in capfd.readouterr().out


def test_one_tensorboard_run(tmp_path: Path) -> None:
    """What was logged behind the checkpoint (30) and before the crash (59) must not appear twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def run(folder: Path, crash_at: int | None = None, resume: bool = False) -> None:
        model = sac(environment(PointEnv), tensorboard_log=str(folder / "tb"))
        checkpoints = TrainingCheckpoints(folder / "resume", every=30, resume=resume, max_share=None)
        model.learn(80, callback=[Crash(crash_at), checkpoints], log_interval=1)

    run(tmp_path / "whole")
    with pytest.raises(Interruption):
        run(tmp_path / "pieces", crash_at=59)
    run(tmp_path / "pieces", resume=True)
    logged = []
    for name in ("whole", "pieces"):
        (folder,) = (tmp_path / name / "tb").iterdir()
        events = EventAccumulator(str(folder))
        events.Reload()
        tags = [tag for tag in events.Tags()["scalars"] if tag != "time/fps"]
        logged.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    assert len(logged[0]["rollout/ep_rew_mean"]) == 8
    assert logged[0] == logged[1]


def test_only_new_rows_are_written(tmp_path: Path) -> None:
    train(tmp_path, lambda env: sac(env, buffer_size=1000), env_id=PointEnv, every=20)
    checkpoint, _ = CheckpointStore(tmp_path / "resume").latest()
    assert checkpoint is not None
    pieces = [name for name in checkpoint.parts if name.startswith("replay")]
    state = decode(checkpoint.read("state.json"), checkpoint.read("arrays.bin"))
    assert [piece["count"] for piece in state["replay"]["pieces"]] == [20] * 6
    assert pieces == [piece["part"] for piece in state["replay"]["pieces"]]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "manifest truncated", "manifest removed"])
def test_damage_is_noticed(harm: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(10, [("a.bin", b"ten"), ("b.bin", b"shared")])
    store.save(20, [("a.bin", b"twenty"), ("b.bin", b"shared")])
    (path,) = [path for path in tmp_path.glob("a-*.bin") if path.read_bytes() == b"twenty"]
    manifest = tmp_path / "checkpoint_000000000020_000000000000.json"
    if harm == "truncate":
        path.write_bytes(b"twen")
    elif harm == "flip":
        path.write_bytes(b"twentx")
    elif harm == "remove":
        path.unlink()
    elif harm == "manifest truncated":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    else:
        manifest.unlink()
    files = sorted(tmp_path.iterdir())
    for _ in range(2):  # a question, which changes nothing
        checkpoint, problems = store.latest()
        assert checkpoint is not None and checkpoint.step == 10 and checkpoint.read("a.bin") == b"ten"
        assert len(problems) == (harm != "manifest removed")
        assert all(manifest.name in problem or path.name in problem for problem in problems)
        assert sorted(tmp_path.iterdir()) == files
    assert checkpoint is not None
    store.remove_newer(checkpoint)
    assert store.steps() == [10] and not manifest.exists() and not path.exists()
    assert store.latest() == (checkpoint, [])


def test_two_checkpoints_at_one_step(tmp_path: Path) -> None:
    """Updates are a clock of their own: a training on stored data takes no step in any environment."""
    store = CheckpointStore(tmp_path, keep=3)
    for updates in (0, 500, 1000):
        store.save(0, [("a.bin", str(updates).encode())], updates)
    store.save(0, [("a.bin", b"again")], 1000)
    assert len(store) == 3 and store.steps() == [0, 0, 0]
    newest, _ = store.latest()
    assert newest is not None and (newest.step, newest.updates) == (0, 1000) and newest.read("a.bin") == b"again"
    (tmp_path / newest.parts["a.bin"]["file"]).unlink()
    older, problems = store.latest()
    assert older is not None and older.updates == 500 and len(problems) == 1
    store.remove_newer(older)
    assert len(store) == 2
    store.save(1, [("a.bin", b"a step")], 1000)
    newest, _ = store.latest()
    assert newest is not None and newest.step == 1


def test_names_of_the_version_before(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(10, [("a.bin", b"ten")])
    (manifest,) = tmp_path.glob("checkpoint_*.json")
    manifest.rename(tmp_path / "checkpoint_000000000010.json")
    newest, _ = store.latest()
    assert newest is not None and (newest.step, newest.updates) == (10, 0)
    store.save(20, [("a.bin", b"twenty")], 7)
    assert store.steps() == [10, 20]


def test_a_clock_of_updates(tmp_path: Path) -> None:
    checkpoints = TrainingCheckpoints(tmp_path, every=8, keep=100, max_share=None, clock="updates")
    model = make(ALGORITHMS[0], learning_starts=10, gradient_steps=2).learn(30, callback=checkpoints)
    saved = [checkpoints.store._open(path) for path in sorted(tmp_path.glob("checkpoint_*.json"))]
    updates = [checkpoint.updates for checkpoint in saved]
    assert updates == sorted(set(updates)) and updates[0] == 0 and updates[-1] == model._n_updates == 40
    assert all(later - earlier >= 8 for earlier, later in itertools.pairwise(updates[:-1]))
    with pytest.raises(ValueError, match=r"Unknown clock='episodes'; known are steps, updates"):
        TrainingCheckpoints(tmp_path, clock="episodes")


def test_checkpoints_roll(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (10, 20, 30):
        store.save(step, [("a.bin", str(step).encode()), ("b.bin", b"shared")])
    (tmp_path / "notes.txt").write_text("not ours")
    store.remove_unused()
    assert len(store) == 2
    assert sorted(path.read_bytes() for path in tmp_path.glob("*.bin")) == [b"20", b"30", b"shared"]
    assert (tmp_path / "notes.txt").exists()
    store.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_write_errors_leave_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", sac, env_id=PointEnv, every=10)
    folder = tmp_path / "pieces"
    written: list[Path] = []

    def fsync(handle: int) -> None:
        written.append(folder)
        if 60 < len(written) < 100:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sb3_diffusion.files.os.fsync", fsync)
    with pytest.warns(UserWarning, match="No space left on device") as caught, pytest.raises(Interruption):
        train(folder, sac, crash_at=85, env_id=PointEnv, every=10)
    assert len([warning for warning in caught if "No checkpoint could be written" in str(warning.message)]) == 1
    assert not list((folder / "resume").glob("*.part"))
    monkeypatch.undo()  # there is room again
    assert_same_training(tmp_path, whole, train(folder, sac, resume=True, env_id=PointEnv, every=10))


def test_file_size_limit(tmp_path: Path) -> None:
    """A limit of the operating system on the size of files, as a full disk without a disk."""
    store = CheckpointStore(tmp_path)
    store.save(10, [("a.bin", b"small")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match="File too large"):
            store.save(20, [("b.bin", b"fits"), ("a.bin", bytes(200_000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    checkpoint, problems = store.latest()
    assert checkpoint is not None and checkpoint.read("a.bin") == b"small" and problems == []
    assert len(list(tmp_path.iterdir())) == 2


def test_all_damaged(tmp_path: Path) -> None:
    with pytest.raises(Interruption):
        train(tmp_path, sac, crash_at=50, env_id=PointEnv)
    for path in (tmp_path / "resume").glob("state-*.json"):
        path.write_text("{}")
    with pytest.raises(ValueError, match="is intact"):
        train(tmp_path, sac, resume=True, env_id=PointEnv)
    checkpoint = CheckpointStore(tmp_path / "resume")._open(max((tmp_path / "resume").glob("checkpoint_*.json")))
    with pytest.raises(DamagedCheckpoint, match="2 bytes instead of"):
        checkpoint.read("state.json")


def test_what_cannot_be_described_is_refused(tmp_path: Path) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    model = contrib.RecurrentPPO("MlpLstmPolicy", environment(), n_steps=10, **tiny())
    with pytest.warns(UserWarning, match="No checkpoints to resume from are written: RecurrentPPO carries hidden states"):
        model.learn(10, callback=TrainingCheckpoints(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="cannot be resumed: RecurrentPPO carries hidden states"):
        model.learn(10, callback=TrainingCheckpoints(tmp_path, resume=True))


def test_rare_checkpoints_where_saving_is_slow(tmp_path: Path) -> None:
    for max_share, expected in ((None, [50, 60]), (1e-9, [0, 60])):
        checkpoints = TrainingCheckpoints(tmp_path / str(max_share), every=10, max_share=max_share)
        sac(environment(PointEnv)).learn(60, callback=checkpoints)
        assert checkpoints.store.steps() == expected
        assert checkpoints.complete


class Everything:
    """One attribute of every kind."""

    def __init__(self, seed: int):
        random = np.random.default_rng(seed)
        self.numbers = [1, 2.5, True, None, "text", b"bytes", 2**70, float("inf")]
        self.many = [float(number) for number in random.normal(size=100)]
        self.array = random.normal(size=(2, 3))
        self.scalar = np.float32(random.normal())
        self.nested = {"a": (1, {2, 3}), (1, 2): [{"b": np.arange(seed)}]}
        self.generator = random
        self.old_generator = np.random.RandomState(seed)
        self.space = gym.spaces.Dict({"box": gym.spaces.Box(-1.0, 1.0, (2,)), "n": gym.spaces.Discrete(3)})
        self.space.seed(seed)
        self.itself = self
        self.function = len


def test_description_round_trip() -> None:
    one, other = Everything(1), Everything(2)
    snapshot = Snapshot(one)
    assert snapshot.unknown == []
    generator = other.generator
    assert Restoration(other, decode(*encode(snapshot.node))).mismatches == []
    assert other.numbers == one.numbers and [type(a) for a in other.numbers] == [type(b) for b in one.numbers]
    assert other.many == one.many and type(other.many[0]) is float
    assert type(other.scalar) is np.float32 and other.scalar == one.scalar
    np.testing.assert_array_equal(other.array, one.array)
    assert other.nested["a"] == one.nested["a"]
    assert other.generator is generator and generator.normal() == one.generator.normal()
    assert other.old_generator.normal() == one.old_generator.normal()
    assert_same_arrays(one.space.sample(), other.space.sample())
    assert other.itself is other


def test_differences_are_reported() -> None:
    node = Snapshot({"a": [Everything(1)], "b": Everything(1)}).node
    target = {"a": [Everything(1), Everything(1)], "b": object()}
    mismatches = Restoration(target, node).mismatches
    assert len(mismatches) == 2 and mismatches[0].startswith(".a") and mismatches[1].startswith(".b (object) is not")


def test_changed_model_is_not_restored() -> None:
    pytest.importorskip("mujoco")
    env, other = gym.make("InvertedPendulum-v5"), gym.make("InvertedPendulum-v5")
    env.reset(seed=0)
    other.reset(seed=0)
    simulator: Any = env.unwrapped
    simulator.model.opt.gravity[:] = 0.0
    lost = Restoration(other, Snapshot(env).node).lost
    assert len(lost) == 1 and "an unchanged model" in lost[0]


def test_resuming_without_a_checkpoint_starts_at_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = sac(environment(PointEnv))
        model.learn(10, callback=TrainingCheckpoints(tmp_path, resume=True))
    assert "There is no checkpoint yet, the training begins at step 0." in capsys.readouterr().out
    assert model.num_timesteps == 10
