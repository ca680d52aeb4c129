"""rl-zoo3's experiment manager with our settings and searches, runs that can be continued, and a report at the end."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import get_latest_run_id
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize
from typing_extensions import override

from sb3_diffusion import OfflineDataset, load_normalization
from sb3_diffusion.checkpoints.trainings import CannotContinue
from sb3_diffusion.checkpoints.trainings.restoration import SnapshotServer
from sb3_diffusion.networks.activations import resolve_activation
from sb3_diffusion.taxonomy import registered_methods

from ..lease import Taken
from .callbacks import Checkpoints, Evaluation, EvaluationBetweenRollouts, Ownership, Progress, SaveNormalization
from .dataset import check_options, imitates, read_data
from .ending import Ending
from .options import hyperparameters, settings
from .options.commands import own_command
from .options.errors import fail
from .options.settings import Settings, hyperparameter_file
from .runs import started_with, trust
from .runs.curve import print_curve
from .runs.folders import RunFolder
from .runs.folders import make as make_folder
from .runs.full_disk import going_on, guard_monitor
from .runs.resume import Run, make_checkpoints, mark_finished, note_extension, resume_command
from .runs.signals import Signals, leave_signals_to_trainer, start_worker_server
from .runs.starting_agent import StartingAgent
from .runs.text_files import write_yaml
from .search_manager import SearchManager
from .tracking import make_logger
from .warmup import announce_warm_up


class Manager(SearchManager):
    """
    Differences from rl-zoo3's manager: the default settings are those of ``hyperparams/<algo>.yml`` in this repository,
    ``lin_`` schedules work for all learning rates, ``dm_control/...`` environments need no further options, activation
    functions may be given by name, a training always writes csv and TensorBoard, several workers share a search for
    hyperparameters exactly, a trained agent is evaluated, an interrupted run can be continued, and settings that cannot be
    right are refused before a folder is made.

    :param args: Command line
    :param algo: Name of the algorithm
    :param env_id: Environment id
    :param positional: See rl-zoo3's manager
    :param run: The run to continue, if any
    :param resume_freq: Steps between two checkpoints for ``--resume``, 0 for none, negative for the default
    :param dry_run: Build everything, write nothing
    :param options: The options of the command line with their origin
    :param trusted: Whether the agent of ``-i`` may run code that is in its files
    :param signals: What becomes of signals
    :param kwargs: See rl-zoo3's manager
    """

    def __init__(
        self,
        args: argparse.Namespace,
        algo: str,
        env_id: str,
        *positional: Any,
        run: Run | None = None,
        resume_freq: int = -1,
        dry_run: bool = False,
        options: Settings | None = None,
        trusted: bool = False,
        signals: Signals | None = None,
        **kwargs: Any,
    ):
        ours = hyperparameter_file(algo)
        if kwargs.get("config") is None and ours.is_file():
            kwargs["config"] = str(ours)
        if kwargs.get("config") is None and algo in registered_methods():
            raise ValueError(f"there are no settings for {algo}; give --conf-file, or register it with settings=... .")
        self.dataset_name: str = getattr(args, "dataset", "")
        self.online_steps: int = getattr(args, "online_steps", 0)
        self.pretrain_updates: int = getattr(args, "pretrain_updates", 0)
        self.demonstrations: OfflineDataset | None = None
        self.asked_n_envs = getattr(args, "n_envs", None)
        args.resume_freq = resume_freq if run is None else run.every  # is stored with the other arguments
        super().__init__(args, algo, env_id, *positional, **kwargs)
        self.resume_freq = args.resume_freq
        self.dry_run = dry_run
        self.options = options or {}
        self.settings: Settings = {}
        self.run = run
        self.signals = signals or Signals()
        self.uuid = kwargs.get("uuid_str", "")
        self.folder: RunFolder | None = None
        self.start = StartingAgent(Path(self.trained_agent), str(self.env_name))
        if self.continue_training and run is None:  # a run that goes on was allowed to when it began
            self.start.check(self.algo, trusted)
        if run is not None:
            self.save_path = str(run.folder)
            self.params_path = str(run.folder / self.env_name)

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        if self.save_replay_buffer and issubclass(ALGOS[self.algo], OnPolicyAlgorithm):
            raise ValueError(f"--save-replay-buffer: {self.algo} is on-policy and keeps no replay buffer; leave it out.")
        hyperparameters.check(ALGOS[self.algo], self.settings)
        hyperparams = hyperparameters.parse_texts(hyperparams)
        policy_kwargs = hyperparams.get("policy_kwargs")
        activation = policy_kwargs.get("activation_fn") if isinstance(policy_kwargs, dict) else None
        if isinstance(activation, str) and not _has_our_policies(ALGOS[self.algo]):
            # Ours take the name, those of Stable-Baselines3 the class
            hyperparams["policy_kwargs"] = {**(policy_kwargs or {}), "activation_fn": resolve_activation(activation)}
        hyperparams, wrap, callbacks, wrap_vector = super()._preprocess_hyperparams(hyperparams)
        if self.imitates_data:
            self.demonstrations = self._read_data()
        elif self.dataset_name:
            hyperparams["dataset"] = self._read_data()
        if self._eval_env_kwargs_args is None:
            self.eval_env_kwargs = self.env_kwargs  # also where they are from the settings
        self.check_environment(wrap, hyperparams["policy"], settings.values(self.settings))
        wrap_all = _wrap_worker if self.vec_env_class is SubprocVecEnv else _wrap
        return hyperparams, partial(wrap_all, wrap), callbacks, wrap_vector

    @override
    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        if self.vec_env_class is SubprocVecEnv:
            start_worker_server()
        try:
            result = super().setup_experiment()
            if result is not None and self.run is None and not self.dry_run:
                write_yaml(Path(self.params_path, settings.FILE), settings.describe(self.effective_settings(result[0])))
            return result
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Leave nothing behind of a training that did not begin."""
        if self.folder is not None:
            self.folder.discard()

    @property
    def imitates_data(self) -> bool:
        """Whether the actor imitates data before it learns from what it does."""
        return bool(self.dataset_name) and imitates(self.algo)

    @property
    def learns_from_data(self) -> bool:
        """Whether the training is one on data."""
        return bool(self.dataset_name) and not self.imitates_data

    def _read_data(self) -> OfflineDataset:
        name = self.dataset_name
        check_options(self.algo, name, self.online_steps, self.pretrain_updates, searches=self.optimize_hyperparameters)
        return read_data(name, self.env_name.gym_id, self.env_kwargs)

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if not self.dry_run:
            trust.mark(self.save_path)  # first: a run with settings can be resumed, whenever the process is killed
        if self.run is None and not self.dry_run:
            super()._save_config(saved_hyperparams)
            Path(self.params_path, "command.txt").write_text(own_command(), encoding="utf-8")
            started_with.keep(Path(self.params_path))

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        print("Loading pretrained agent")
        settings = {name: value for name, value in hyperparams.items() if name not in ("policy", "policy_kwargs")}
        session = {"seed": self.seed, "verbose": self.verbose, "device": self.device, "tensorboard_log": self.tensorboard_log}
        return self.start.load(self.algo, env, settings | session, self.truncate_last_trajectory)

    @override
    def create_callbacks(self) -> None:
        if self.show_progress and not self.learns_from_data:
            self.callbacks.append(Progress())
        if self.save_freq > 0:
            self.save_freq = max(self.save_freq // self.n_envs, 1)
            self.callbacks.append(Checkpoints(self.save_freq, self.save_path))
        if self.eval_freq > 0 and not self.optimize_hyperparameters:
            self.eval_freq = max(self.eval_freq // self.n_envs, 1)
            evaluation = (EvaluationBetweenRollouts if self.has_one_simulation else Evaluation)(
                self.create_envs(self.n_eval_envs, eval_env=True),
                callback_on_new_best=SaveNormalization(Path(self.params_path, "vecnormalize.pkl")),
                best_model_save_path=self.save_path,
                n_eval_episodes=self.n_eval_episodes,
                log_path=self.save_path,
                eval_freq=self.eval_freq,
                deterministic=self.deterministic_eval,
            )
            self.callbacks.append(evaluation)

    @override
    def learn(self, model: BaseAlgorithm) -> None:
        assert self.folder is not None
        model.set_logger(make_logger(Path(self.save_path), self._tensorboard_folder(model), self.verbose))
        self.checkpoints = make_checkpoints(self.save_path, self.params_path, self.resume_freq, resume=self.run is not None)
        # rl-zoo3 tells the first callback about the end of an interrupted training, too
        self.callbacks = [*(self.callbacks or [ConvertCallback(None)]), Ownership(self.folder), self.checkpoints]
        if self.run is not None:
            note_extension(self.run)
        if not self.learns_from_data:
            announce_warm_up(getattr(model, "learning_starts", 0), int(self.n_timesteps))
        self.signals.listen(self.checkpoints)
        try:
            if self.learns_from_data:
                self._learn_from_data(model)
            else:
                self._imitate(model)
                super().learn(model)
        except (CannotContinue, Taken) as error:
            self.folder.release()
            fail("train.py", str(error))
        except Exception:
            if self.run is None and model.num_timesteps == 0:
                self.give_up()
            self.folder.release()
            raise
        finally:
            self.signals.listen(None)

    def _imitate(self, model: Any) -> None:
        """What comes before the first step, unless a checkpoint has it already."""
        if self.demonstrations is not None and self.checkpoints.store.latest()[0] is None:
            model.pretrain(self.demonstrations, self.pretrain_updates, progress_bar=self.show_progress)
            print(f"{self.pretrain_updates} updates of the imitation are done")

    def _learn_from_data(self, model: Any) -> None:
        """Updates on the data, then steps of the environment."""
        common: dict[str, Any] = {"progress_bar": self.show_progress}
        offline = {"log_interval": self.log_interval} if self.log_interval > 0 else {}
        try:
            model.learn_offline(int(self.n_timesteps), callback=self.callbacks, **offline, **common)
            if self.online_steps:
                self._go_on_online(model, common)
        except KeyboardInterrupt:  # the agent is saved as it is, as in rl-zoo3
            pass
        finally:
            self.callbacks[0].on_training_end()
            model.env.close()

    def _go_on_online(self, model: Any, common: dict[str, Any]) -> None:
        print(f"{int(self.n_timesteps)} updates on data are done; going on with {self.online_steps} environment steps")
        own = [callback for callback in self.callbacks if callback is not self.checkpoints]
        self.checkpoints = make_checkpoints(self.save_path, self.params_path, self.resume_freq, resume=self.run is not None)
        self.signals.listen(self.checkpoints)
        model.learn(self.online_steps, callback=[*own, self.checkpoints], **common)

    @override
    def create_log_folder(self) -> None:
        if self._writes_no_run:
            return
        if self.run is None:
            try:
                self.folder = RunFolder.claim(self.log_path, self.env_name.gym_id, self.uuid)
            except OSError as error:
                fail("train.py", f"no folder can be made in {self.log_path} ({error}); --log-folder names another place")
            self.save_path = str(self.folder.path)
            self.params_path = str(self.folder.path / self.env_name)
        else:
            self.folder = self.run.lock
        super().create_log_folder()

    @property
    def _writes_no_run(self) -> bool:
        return self.optimize_hyperparameters or self.dry_run

    @override
    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        return super().create_envs(n_envs, eval_env, no_log or self._writes_no_run)

    def _tensorboard_folder(self, model: BaseAlgorithm) -> Path:
        """The run folder, or a new one below the folder that the user names."""
        if self.tensorboard_log is None:
            return Path(self.save_path)
        parent, name, folder = Path(self.tensorboard_log), type(model).__name__, None
        parent.mkdir(parents=True, exist_ok=True)
        while folder is None:  # another training may make the same one at this moment
            folder = make_folder(parent, f"{name}_{get_latest_run_id(self.tensorboard_log, name) + 1}")
        return folder

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if not self.continue_training or not self.start.holds_normalization:
            return super()._maybe_normalize(env, eval_env)
        normalized = load_normalization(self.trained_agent, env)  # of this agent, not that at the end of its run
        assert isinstance(normalized, VecNormalize)
        normalized.training = not eval_env
        normalized.norm_reward = not eval_env and self.normalize_kwargs.get("norm_reward", True)
        return normalized

    @override
    def save_trained_model(self, model: BaseAlgorithm) -> None:
        assert self.folder is not None
        try:
            self._finish(model)
        finally:
            self.folder.release()

    def _finish(self, model: BaseAlgorithm) -> None:
        ending = Ending(model, Path(self.save_path), self.env_name, self.checkpoints.last_step)
        if self.checkpoints.complete or self.checkpoints.stopped:
            ending.save(with_replay_buffer=self.save_replay_buffer)
        if self.checkpoints.complete:
            if self.n_eval_episodes > 0:
                self._evaluate(ending)
            with going_on("finished.json"):
                mark_finished(self.save_path, self.params_path, model.num_timesteps)
        else:
            print(ending.how_to_continue())
        print_curve(Path(self.save_path))
        ending.say_how_to_watch(self.algo, self.log_folder, getattr(self.args, "gym_packages", []))

    def _evaluate(self, ending: Ending) -> None:
        try:
            env = self.create_envs(1, eval_env=True)
            budget = int(self.n_timesteps) + self.online_steps
            ending.evaluate(env, self.n_eval_episodes, self.deterministic_eval, budget)
        except KeyboardInterrupt:
            print(f"The evaluation at the end was interrupted; repeat it with: {resume_command(self.save_path)}")
            raise


def _has_our_policies(algorithm: type[BaseAlgorithm]) -> bool:
    return any(policy.__module__.startswith("sb3_diffusion.") for policy in algorithm.policy_aliases.values())


def _wrap(wrap: Callable[[gym.Env], gym.Env] | None, env: gym.Env) -> gym.Env:
    env = guard_monitor(env)
    return env if wrap is None else wrap(env)


def _wrap_worker(wrap: Callable[[gym.Env], gym.Env] | None, env: gym.Env) -> gym.Env:
    """In a process of its own, an environment has to describe its state itself."""
    leave_signals_to_trainer()
    return SnapshotServer(_wrap(wrap, env))
