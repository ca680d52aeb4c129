"""Continue an interrupted run: ``python zoo/train.py --resume logs/dacer/Hopper-v5_1`` (docs: guide/resume)."""

import argparse
import json
import os
import shlex
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_sb3 import EnvironmentName  # a module of sb3-team-hf-integration, which rl-zoo3 brings

from sb3_diffusion.checkpoints.trainings import TrainingCheckpoints
from sb3_diffusion.checkpoints.trainings.store import CheckpointStore
from sb3_diffusion.files import write_atomically

from ..options.commands import command
from ..options.train import RESUME_EVERY, RESUME_SHARE
from . import started_with
from .folders import RunFolder
from .text_files import read_yaml
from .trust import check_own, what_runs

FOLDER = "resume"
FINISHED = "finished.json"
_NOT_PASSED_ON = {
    *("resume_freq", "command", "truncate_last_trajectory"),  # not options of rl-zoo3, or without effect
    *("log_folder", "uuid"),  # the folder is known
    "extended_from",  # numbers of steps at which the run was finished before
    *("conf_file", "hyperparams", "storage", "study_name", "trial_id"),  # their result is in config.yml
}


@dataclass
class Run:
    """
    A run that was started before.

    :param folder: Its log folder
    :param arguments: Its command line, as rl-zoo3 stores it
    :param hyperparams: Its settings
    :param settings: Folder of its settings
    :param lock: The folder, once this process holds it
    """

    folder: Path
    arguments: dict[str, Any]
    hyperparams: dict[str, Any]
    settings: Path
    lock: RunFolder | None = None

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
    :raises ValueError: If it cannot be continued; the message says why
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the log folder of a run, such as logs/dacer/Hopper-v5_1.")
    settings = sorted(folder.glob("*/args.yml"))
    if len(settings) != 1:
        raise ValueError(f"{folder} is not the log folder of one run: it has {len(settings)} files */args.yml instead of one.")
    original = started_with.original(settings[0].parent)
    arguments, hyperparams = (_load(original / name) for name in ("args.yml", "config.yml"))
    if not {"algo", "env", "seed", "resume_freq"} <= set(arguments):
        raise ValueError(f"{folder} was not written by a version that can resume; start the training again.")
    if EnvironmentName(arguments["env"]) != settings[0].parent.name:
        raise ValueError(f"{settings[0]} is the one of a run in {arguments['env']!r}; the folder was put together by hand.")
    return Run(folder, arguments, hyperparams, settings[0].parent)


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


def checkpoint_steps(folder: str | Path) -> list[int]:
    """
    :param folder: Log folder of a run, which may be running
    :return: Steps of its checkpoints in ascending order, intact or not
    """
    return CheckpointStore(Path(folder) / FOLDER).steps()


def continue_run(
    folder: str, resume_freq: int | None, rest: Sequence[str], trusted: bool = False
) -> tuple[Run, list[str]] | None:
    """
    :param folder: Value of ``--resume``
    :param resume_freq: Value of ``--resume-freq``
    :param rest: The other options
    :param trusted: Whether the user has given ``--trust-remote-code``
    :return: The run, whose folder this process holds from now on, and the command line for rl-zoo3; ``None`` if it is finished
        and nothing more is asked for
    :raises ValueError: If it cannot be continued, or an option would change it
    """
    harmless, n_timesteps = _parse_rest(rest)
    if finished(folder) and n_timesteps is None:
        return None
    run = open_run(folder)
    run.lock = RunFolder.reopen(run.folder)
    try:
        _check_settings(run)
        run.arguments |= harmless
        done = _check_checkpoints(run)
        check_own(run.folder, trusted, f"--resume goes on with it: {what_runs(run.hyperparams, run.command_line())}")
        if n_timesteps is not None:
            _extend(run, n_timesteps, done)
    except ValueError:
        run.lock.release()
        raise
    if resume_freq is not None:
        run.arguments["resume_freq"] = resume_freq
    return run, run.command_line()


def _parse_rest(rest: Sequence[str]) -> tuple[dict[str, Any], int | None]:
    """What is changed without changing the run, and the new number of steps."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--device")
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("-P", "--progress", action="store_true", default=None)
    parser.add_argument("-n", "--n-timesteps", type=int)
    try:
        given, others = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}.") from None
    if others:
        raise ValueError(
            f"--resume takes all settings from the run; remove {' '.join(others)} "
            "(only -n, --device, --num-threads, --progress and --resume-freq may be given)."
        )
    harmless = {name: value for name, value in vars(given).items() if value is not None}
    return harmless, harmless.pop("n_timesteps", None)


def _check_settings(run: Run) -> None:
    edited = started_with.changes(run.settings)
    if edited:
        raise ValueError(
            f"{run.folder} goes on with the settings that it was started with, but they were edited: {'; '.join(edited)}. "
            f"Take the files in {run.settings / started_with.FOLDER} to undo that, or start a new run with -params (and -i)."
        )


def _check_checkpoints(run: Run) -> int:
    """Step of the checkpoint from which the run continues, 0 if it begins again."""
    store = CheckpointStore(run.folder / FOLDER)
    if len(store) == 0:
        if finished(run.folder):
            n_steps = _finished_at(run)
            agent = shlex.quote(str(run.folder / f"{run.settings.name}.zip"))
            raise ValueError(
                f"{run.folder} is finished and its last checkpoint is not there; train its agent on in a new run with: "
                f"python zoo/train.py --algo {run.arguments['algo']} --env {run.arguments['env']} -i {agent} "
                f"(without the replay buffer; -n counts from 0, this one had {n_steps} steps)."
            )
        if run.every == 0:
            raise ValueError(
                f"{run.folder} was trained with --resume-freq 0 and has no checkpoints; start the training again."
            )
        return 0
    checkpoint, problems = store.latest()
    if checkpoint is None:
        raise ValueError(f"no checkpoint in {store.folder} is intact: {'; '.join(problems)}.")
    return checkpoint.step


def _finished_at(run: Run) -> int:
    try:
        return int(json.loads((run.settings / FINISHED).read_text(encoding="utf-8"))["num_timesteps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _extend(run: Run, n_timesteps: int, done: int) -> None:
    if run.arguments.get("dataset"):
        raise ValueError(
            f"-n {n_timesteps}: {run.folder} learned from data, for the number of updates that its schedules were made for; "
            "train its agent on in a new run with -i."
        )
    done = max(done, _finished_at(run))
    if n_timesteps <= done:
        raise ValueError(
            f"-n {n_timesteps} is the total number of steps, of which {run.folder} has done {done}; give more than that."
        )
    print(f"Going on from {done} to {n_timesteps} steps; learning rates that decay do so over the new total.")
    run.arguments["n_timesteps"] = n_timesteps


def note_extension(run: Run) -> None:
    """
    Write down that a run goes on to more steps than it was started for, so that an interruption does not forget it.

    :param run: The run, whose training begins
    """
    before = _load(started_with.original(run.settings) / "args.yml")
    after = {**before, "n_timesteps": run.arguments.get("n_timesteps", -1)}
    if finished(run.folder):
        after["extended_from"] = [*before.get("extended_from", []), _finished_at(run)]
    if after != before:
        text = yaml.dump(OrderedDict(after))  # as rl-zoo3 writes it
        for folder in (started_with.original(run.settings), run.settings):
            write_atomically(folder / "args.yml", text.encode())
    (run.settings / FINISHED).unlink(missing_ok=True)


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


def resume_command(folder: str | Path) -> str:
    """
    :param folder: Log folder of a run
    :return: What to type to continue it
    """
    return command("train", "--resume", folder)


def how_to_continue(folder: Path, last_step: int | None, num_timesteps: int) -> str:
    """
    :param folder: Log folder of a run
    :param last_step: Step of its newest checkpoint, if any
    :param num_timesteps: Steps that were done
    """
    if last_step is None:
        return f"After {num_timesteps} steps there is no checkpoint of {folder} to continue from; -i trains an agent on."
    where = "" if last_step == num_timesteps else f", at step {last_step}"
    return f"After {num_timesteps} steps, continue{where} with: {resume_command(folder)}"


def mark_finished(save_path: str, params_path: str, num_timesteps: int) -> None:
    """
    Note that a run is complete, and keep only its last checkpoint.

    :param save_path: Log folder of the run
    :param params_path: Folder of its settings
    :param num_timesteps: Steps at its end
    """
    write_atomically(Path(params_path) / FINISHED, json.dumps({"num_timesteps": num_timesteps}).encode())
    CheckpointStore(Path(save_path) / FOLDER, keep=1).remove_unused()


def drop_checkpoints(folder: str | Path) -> None:
    """
    Remove what only ``--resume`` needs.

    :param folder: Log folder of a run
    """
    checkpoints = Path(folder) / FOLDER
    if checkpoints.is_dir():
        CheckpointStore(checkpoints).clear()
        if not os.listdir(checkpoints):
            checkpoints.rmdir()
