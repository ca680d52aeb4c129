"""rl-zoo3's experiment manager with our settings, DeepMind Control tasks and a report at the end."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.samplers import BaseSampler
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule, get_latest_run_id
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_diffusion.networks.activations import resolve_activation
from sb3_diffusion.taxonomy import available_methods

from . import tuning
from .registry import DMC_PREFIX, fail
from .tracking import make_logger

# Every setting that may be written as "lin_3e-4": from that value to zero over the run.
SCHEDULES = ("learning_rate", "actor_learning_rate", "critic_learning_rate", "clip_range", "clip_range_vf", "delta_std")
DMC_FAMILY: dict[str, Any] = {"env_wrapper": {"sb3_diffusion.envs.dmc.wrap_dmc": {"action_repeat": 2}}}


def hyperparameter_file(algo: str) -> Path:
    """
    Our hyperparameter file of an algorithm (it does not exist for those of rl-zoo3 that are no baseline of ours).

    :param algo: Name on the command line
    """
    here = Path(__file__).resolve().parent
    installed = here / "hyperparams"
    return (installed if installed.is_dir() else here.parent / "hyperparams") / f"{algo}.yml"


class Manager(ExperimentManager):
    """
    Differences from rl-zoo3's manager: the default settings are those of ``hyperparams/<algo>.yml`` in this repository,
    ``lin_`` schedules work for all learning rates, ``dm_control/...`` environments need no further options, activation
    functions may be given by name, a training always writes csv and TensorBoard, several workers share a search for
    hyperparameters exactly, and a trained agent is evaluated.
    """

    def __init__(self, args: argparse.Namespace, algo: str, env_id: str, *positional: Any, **kwargs: Any):
        ours = hyperparameter_file(algo)
        if kwargs.get("config") is None and ours.is_file():
            kwargs["config"] = str(ours)
        super().__init__(args, algo, env_id, *positional, **kwargs)
        if getattr(args, "track", False):
            self.tensorboard_log = None  # rl-zoo3 would write below runs/

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.trial_id is not None:
            # rl-zoo3 ignores trial 0
            self.custom_hyperparams = self._trial_settings(self.trial_id) | (self.custom_hyperparams or {})
            self.trial_id = None
        if self.env_name.gym_id.startswith(DMC_PREFIX):
            self.custom_hyperparams = self._dmc_family() | (self.custom_hyperparams or {})
        return super().read_hyperparameters()

    def _dmc_family(self) -> dict[str, Any]:
        """What a task of the suite without an entry of its own adds to the default: the ``dm_control`` entry, if any."""
        if not self.config.endswith((".yml", ".yaml")):
            return DMC_FAMILY
        entries = yaml.safe_load(Path(self.config).read_text(encoding="utf-8"))
        if self.env_name.gym_id in entries:
            return {}
        return DMC_FAMILY | entries.get("dm_control", {})

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        linear = {key: _linear_schedule(key, hyperparams[key]) for key in SCHEDULES if isinstance(hyperparams.get(key), str)}
        others = {key: value for key, value in hyperparams.items() if key not in linear}
        # rl-zoo3 would build its own schedule class, which a saved agent could not be loaded without
        return ExperimentManager._preprocess_schedules(others) | linear

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        policy_kwargs = hyperparams.get("policy_kwargs")
        ours = {method.zoo_name for method in available_methods()}
        if self.algo not in ours and isinstance(policy_kwargs, dict) and isinstance(policy_kwargs.get("activation_fn"), str):
            # Our policies take the name, those of Stable-Baselines3 the class
            activation = resolve_activation(policy_kwargs["activation_fn"])
            hyperparams["policy_kwargs"] = {**policy_kwargs, "activation_fn": activation}
        return super()._preprocess_hyperparams(hyperparams)

    def _trial_settings(self, trial_id: int) -> dict[str, Any]:
        if self.storage is None or self.study_name is None:
            fail("train.py", f"--trial-id {trial_id} needs --storage and --study-name, which say whose trial it is")
        try:
            params = tuning.load_trial(self.storage, self.study_name, trial_id, self.algo)
        except ValueError as error:
            fail("train.py", str(error))
        settings: dict[str, Any] = HYPERPARAMS_CONVERTER[self.algo](params)
        return settings

    def create_log_folder(self) -> None:
        if not self.optimize_hyperparameters:  # a search writes no run
            super().create_log_folder()

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        return super().create_envs(n_envs, eval_env, no_log or self.optimize_hyperparameters)

    def learn(self, model: BaseAlgorithm) -> None:
        model.set_logger(make_logger(Path(self.save_path), self._tensorboard_folder(model), self.verbose))
        super().learn(model)

    def _tensorboard_folder(self, model: BaseAlgorithm) -> Path:
        """The run folder, or a new one below the folder that the user names."""
        if self.tensorboard_log is None:
            return Path(self.save_path)
        name = type(model).__name__
        return Path(self.tensorboard_log, f"{name}_{get_latest_run_id(self.tensorboard_log, name) + 1}")

    def _create_sampler(self, sampler_method: str) -> BaseSampler:
        try:
            return super()._create_sampler(sampler_method)
        except (ImportError, OSError) as error:
            needs = "needs the package optunahub and a connection to the network"
            fail("train.py", f"--sampler {sampler_method} {needs} ({error}); install it, or take --sampler tpe")

    def objective(self, trial: optuna.Trial) -> float:
        try:
            return super().objective(trial)
        except optuna.TrialPruned as pruned:
            if pruned.__cause__ is not None:  # rl-zoo3 takes an error of the training for a reason to prune
                raise pruned.__cause__ from None
            raise

    def hyperparameters_optimization(self) -> None:
        if self.tensorboard_log is not None:
            print("The trials of a search write no TensorBoard files.")
        if self.algo not in HYPERPARAMS_SAMPLER:
            fail("train.py", f"-optimize: there is no search space for {self.algo}")
        sampler, pruner = self._create_sampler(self.sampler), self._create_pruner(self.pruner)
        settings = {key: str(value) for key, value in self._hyperparams.items()}
        attributes = {"algo": self.algo, "env": self.env_name.gym_id, "command": " ".join(sys.orig_argv), **settings}
        try:
            lock = tuning.storage_lock(self.storage)
            study = tuning.open_study(self.storage, self.study_name, lock, sampler, pruner, attributes)
        except ValueError as error:
            fail("train.py", str(error))
        print(f"Study {study.study_name}, sampler {self.sampler}, pruner {self.pruner}")
        tuning.Search(study, self.objective, lock, self.n_trials, self.max_total_trials).run(self.n_jobs)
        train = tuning.train_command(sys.argv, study.study_name) if self.storage is not None else []
        tuning.print_summary(study, train)
        # the same name for every worker: the last one has seen all trials
        report = f"report_{self.env_name}_{study.study_name.replace('/', '-')}"
        tuning.write_report(study, Path(self.log_folder, self.algo, report), picture=not self.no_optim_plots)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        super().save_trained_model(model)
        if self.n_eval_episodes > 0:
            self._print_evaluation(model)
        folder = Path(self.save_path)
        print(f"Agent saved as {folder / self.env_name}.zip")
        exp_id = folder.name.removeprefix(f"{self.env_name}_")
        if exp_id.isdigit():
            print(f"Watch it with: {_enjoy_program()} --algo {self.algo} --env {self.env_name.gym_id}", end=" ")
            print(f"-f {self.log_folder} --exp-id {exp_id}")

    def _print_evaluation(self, model: BaseAlgorithm) -> None:
        env = self.create_envs(1, eval_env=True)
        if model.get_vec_normalize_env() is not None:
            training_env = model.get_env()
            assert training_env is not None
            sync_envs_normalization(training_env, env)
        mean, std = evaluate_policy(
            model, env, n_eval_episodes=self.n_eval_episodes, deterministic=self.deterministic_eval, warn=False
        )
        env.close()
        kind = "deterministic" if self.deterministic_eval else "stochastic"
        print(
            f"Evaluation after {model.num_timesteps} steps: mean reward {mean:.2f} +/- {std:.2f} "
            f"over {self.n_eval_episodes} {kind} episodes"
        )


def _linear_schedule(key: str, text: str) -> LinearSchedule:
    prefix, _, number = text.partition("_")
    try:
        initial_value = float(number)
    except ValueError:
        prefix = ""
    if prefix != "lin":
        raise ValueError(f"{key}={text!r} must be a number or 'lin_<initial value>', for example lin_3e-4.")
    return LinearSchedule(initial_value, 0.0, 1.0)


def _enjoy_program() -> str:
    if "-m" in sys.orig_argv:
        return f"python -m {__package__}.enjoy"
    return f"python {Path(sys.argv[0]).with_name('enjoy.py')}"
