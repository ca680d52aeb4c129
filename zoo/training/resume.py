"""Continue an interrupted run: ``python zoo/train.py --resume logs/dacer/Hopper-v5_1`` (docs: guide/resume)."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName  # a module of sb3-team-hf-integration, which rl-zoo3 brings

from sb3_diffusion.core.checkpoint_store import CheckpointStore, write_atomically
from sb3_diffusion.core.training_checkpoints import TrainingCheckpoints

from .options import RESUME_EVERY, RESUME_SHARE
from .run_files import read_yaml
from .trust import check_own, what_runs

FOLDER = "resume"
FINISHED = "finished.json"
_NOT_PASSED_ON = {
    *("resume_freq", "command", "truncate_last_trajectory"),  # not options of rl-zoo3, or without effect
    *("log_folder", "uuid"),  # the folder is known
    *("conf_file", "hyperparams", "storage", "study_name", "trial_id"),  # their result is in config.yml
}


@dataclass
class Run:
    """
    A run that was started before.

    :param folder: Its log folder
    :param arguments: Its command line, as rl-zoo3 stores it
    :param hyperparams: Its settings
    """

    folder: Path
    arguments: dict[str, Any]
    hyperparams: dict[str, Any]

    @property
    def every(self) -> int:
        """Steps between two checkpoints; negative for the default."""
        return int(self.arguments["resume_freq"])

    def command_line(self) -> list[str]:
        """The options with which rl-zoo3 builds the same run again."""
        options = [f"--log-folder={self.folder.parent.parent}"]
        for name, value in self.arguments.items():
            option = f"--{name.replace('_', '-')}"
            if name in _NOT_PASSED_ON or value is None or value is False or value == [] or value == "":
                continue
            if value is True:
                options.append(option)
            elif isinstance(value, dict):
                options += [option, *(f"{key}:{item!r}" for key, item in value.items())]
            elif isinstance(value, list):
                options += [option, *map(str, value)]
            else:
                options.append(f"{option}={value}")
        return options


def open_run(folder: str | Path) -> Run:
    """
    :param folder: Log folder of a run, such as ``logs/dacer/Hopper-v5_1``
    :return: What is stored there
    :raises ValueError: if it cannot be continued; the message says why
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the log folder of a run, such as logs/dacer/Hopper-v5_1.")
    settings = sorted(folder.glob("*/args.yml"))
    if len(settings) != 1:
        raise ValueError(f"{folder} is not the log folder of one run: it has {len(settings)} files */args.yml instead of one.")
    arguments, hyperparams = (_load(settings[0].with_name(name)) for name in ("args.yml", "config.yml"))
    if not {"algo", "env", "seed", "resume_freq"} <= set(arguments):
        raise ValueError(f"{folder} was not written by a version that can resume; start the training again.")
    if EnvironmentName(arguments["env"]) != settings[0].parent.name:
        raise ValueError(f"{settings[0]} is the one of a run in {arguments['env']!r}; the folder was put together by hand.")
    return Run(folder, arguments, hyperparams)


def _load(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{' '.join(str(error).split())} Start the training again.") from error


def finished(folder: str | Path) -> bool:
    """
    :param folder: Log folder of a run
    :return: Whether the training reached its end and the agent was saved
    """
    return any(Path(folder).glob(f"*/{FINISHED}"))


def resumable(folder: str | Path) -> bool:
    """
    :param folder: Log folder of a run
    :return: Whether ``--resume`` continues it; a run without a checkpoint so far begins again in the same folder
    """
    if finished(folder):
        return False
    try:
        run = open_run(folder)
    except ValueError:
        return False
    store = CheckpointStore(run.folder / FOLDER)
    return store.latest()[0] is not None or (len(store) == 0 and run.every != 0)


def continue_run(folder: str, resume_freq: int | None, rest: Sequence[str], trusted: bool = False) -> tuple[Run, list[str]]:
    """
    :param folder: Value of ``--resume``
    :param resume_freq: Value of ``--resume-freq``
    :param rest: The other options
    :param trusted: Whether the user has given ``--trust-remote-code``
    :return: The run, and the command line for rl-zoo3
    :raises ValueError: if it cannot be continued, or an option would change it
    """
    run = open_run(folder)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--device")
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("-P", "--progress", action="store_true", default=None)
    harmless, others = parser.parse_known_args(rest)
    if others:
        raise ValueError(
            f"--resume takes all settings from the run; remove {' '.join(others)} "
            "(only --device, --num-threads, --progress and --resume-freq may be given)."
        )
    run.arguments |= {name: value for name, value in vars(harmless).items() if value is not None}
    store = CheckpointStore(run.folder / FOLDER)
    if len(store) == 0 and run.every == 0:
        raise ValueError(f"{folder} was trained with --resume-freq 0 and has no checkpoints; start the training again.")
    if len(store) > 0:
        checkpoint, problems = store.latest()
        if checkpoint is None:
            raise ValueError(f"no checkpoint in {store.folder} is intact: {'; '.join(problems)}.")
    check_own(run.folder, trusted, f"--resume goes on with it: {what_runs(run.hyperparams, run.command_line())}")
    if resume_freq is not None:
        run.arguments["resume_freq"] = resume_freq
    return run, run.command_line()


def make_checkpoints(save_path: str, params_path: str, every: int, resume: bool) -> TrainingCheckpoints:
    """
    The callback that stores the checkpoints of a run.

    :param save_path: Log folder of the run
    :param params_path: Folder of its settings
    :param every: Value of ``--resume-freq``; negative for the default
    :param resume: Continue from the newest checkpoint
    """
    folder = Path(save_path)
    return TrainingCheckpoints(
        folder / FOLDER,
        every=RESUME_EVERY if every < 0 else every,
        resume=resume,
        files=[folder / "best_model.zip", folder / "evaluations.npz", Path(params_path) / "vecnormalize.pkl"],
        max_share=RESUME_SHARE if every < 0 else None,
    )


def mark_finished(save_path: str, params_path: str, num_timesteps: int) -> None:
    """
    Note that a run is complete, and remove its checkpoints.

    :param save_path: Log folder of the run
    :param params_path: Folder of its settings
    :param num_timesteps: Steps at its end
    """
    write_atomically(Path(params_path) / FINISHED, json.dumps({"num_timesteps": num_timesteps}).encode())
    folder = Path(save_path) / FOLDER
    if folder.is_dir():
        CheckpointStore(folder).clear()
        if not os.listdir(folder):
            folder.rmdir()
