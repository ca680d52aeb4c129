"""What one call of ``train.py`` does once its options are read and its names are known to exist."""

import argparse
import uuid
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed

from .manager import Manager
from .options import settings
from .options.device import check_device
from .options.errors import held_back, mistakes
from .options.registry import register_algorithms
from .options.settings import Setting
from .options.train import default_options
from .runs.resume import Run
from .runs.signals import Signals
from .tracking import start_tracking


def train(prog: str, args: argparse.Namespace, own: argparse.Namespace, run: Run | None, signals: Signals) -> None:
    """
    Train, search, or only show the settings. All that goes wrong before the first step is one line.

    :param prog: Name of the program, for messages
    :param args: rl-zoo3's arguments
    :param own: The other options
    :param run: The run to continue, if any
    :param signals: What becomes of signals
    """
    with mistakes(prog, own.traceback), held_back():
        register_algorithms()
        check_device(args.device)
        manager = make_manager(args, own, run, signals)
        model = build(manager)
    if model is None:
        manager.hyperparameters_optimization()
    elif not own.dry_run:
        manager.learn(model)
        manager.save_trained_model(model)


def make_manager(args: argparse.Namespace, own: argparse.Namespace, run: Run | None, signals: Signals) -> Manager:
    """
    Seed everything, and make the manager.

    :param args: rl-zoo3's arguments; a seed that is drawn is stored there
    :param own: The other options
    :param run: The run to continue, if any
    :param signals: What becomes of signals
    """
    options = settings.from_options(vars(args), default_options())
    if args.seed < 0:
        args.seed = int(np.random.randint(2**32 - 1, dtype="int64"))
        options["seed"] = Setting(args.seed, "drawn at random")
    set_random_seed(args.seed)
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    print("=" * 10, args.env, "=" * 10)
    print(f"Seed: {args.seed}")
    return Manager(
        args,
        args.algo,
        args.env,
        args.log_folder,
        run=run,
        resume_freq=-1 if own.resume_freq is None else own.resume_freq,
        dry_run=own.dry_run,
        options=options,
        trusted=own.trust_remote_code,
        signals=signals,
        **_manager_arguments(args),
    )


def _manager_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of rl-zoo3's manager that have another name on its command line, and those that have not."""
    same = (
        *("n_timesteps", "eval_freq", "save_freq", "hyperparams", "env_kwargs", "eval_env_kwargs", "trained_agent"),
        *("optimize_hyperparameters", "storage", "study_name", "n_trials", "max_total_trials", "n_jobs", "sampler", "pruner"),
        *("optimization_log_path", "n_startup_trials", "n_evaluations", "truncate_last_trajectory", "seed", "log_interval"),
        *("save_replay_buffer", "verbose", "n_eval_envs", "no_optim_plots", "device", "tensorboard_log", "trial_id"),
    )
    others = {
        "n_eval_episodes": "eval_episodes",
        "vec_env_type": "vec_env",
        "config": "conf_file",
        "show_progress": "progress",
    }
    return {name: getattr(args, others.get(name, name)) for name in (*same, *others)} | {"uuid_str": _unique_id(args.uuid)}


def _unique_id(wanted: bool) -> str:
    return f"_{uuid.uuid4()}" if wanted else ""


def build(manager: Manager) -> BaseAlgorithm | None:
    """
    Build environment and agent, and leave no folder if that fails.

    :param manager: The manager
    :return: The agent; ``None`` if hyperparameters are to be searched
    """
    try:
        result = manager.setup_experiment()
        if result is None:
            return None
        model, hyperparams = result
        if manager.dry_run:
            print(settings.table(manager.effective_settings(model)))
        elif manager.args.track:
            start_tracking(manager.args, hyperparams)
    except BaseException:
        manager.give_up()
        raise
    return model
