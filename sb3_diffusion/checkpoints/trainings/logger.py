"""What a logger has collected and written, described and put back."""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    Logger,
    TensorBoardOutputFormat,
)
from torch.utils.tensorboard import SummaryWriter

from sb3_diffusion.checkpoints.trainings.restoration import Restoration, overwrite
from sb3_diffusion.checkpoints.trainings.snapshot import Node, Snapshot

_LOGGED = (bool, int, float, str, np.generic)


def _log_file(output: Any) -> Any:
    """The open file of an output that writes one, or ``None``."""
    own = isinstance(output, CSVOutputFormat | JSONOutputFormat) or (isinstance(output, HumanOutputFormat) and output.own_file)
    return output.file if own else None


def describe_logger(logger: Logger, folder: Path, time: int) -> Node:
    """
    :param logger: A logger
    :param folder: Folder of the checkpoints, from which TensorBoard's is found again
    :param time: What it is now on the axis of the logs
    :return: Values that wait to be written, the contents of its files, and where TensorBoard's are
    """
    numbers = {key: value for key, value in logger.name_to_value.items() if isinstance(value, _LOGGED)}
    values = {
        "name_to_value": numbers,
        "name_to_count": dict(logger.name_to_count),
        "name_to_excluded": {key: logger.name_to_excluded.get(key, ("",)) for key in numbers},
    }
    files, directory = {}, None
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            directory = os.path.relpath(output.writer.log_dir, folder)
        if (handle := _log_file(output)) is not None:
            content = np.frombuffer(Path(handle.name).read_bytes(), np.uint8)
            files[type(output).__name__] = {"content": content, "keys": list(getattr(output, "keys", []))}
    return {"values": Snapshot(values).node, "files": files, "tensorboard": directory, "time": time}


def restore_logger(logger: Logger, node: Node, folder: Path, num_timesteps: int) -> None:
    """
    :param logger: A logger with the same outputs
    :param node: What :func:`describe_logger` returned. What TensorBoard has of later times is hidden
    :param folder: Folder of the checkpoints
    :param num_timesteps: Steps of the checkpoint, if it is one of a version that did not keep the time
    """
    time = node.get("time", num_timesteps)
    for name, values in Restoration({}, node["values"]).value.items():
        current = getattr(logger, name)
        current.clear()
        current.update(values)
    for output in logger.output_formats:
        stored = node["files"].get(type(output).__name__)
        if stored is not None and (handle := _log_file(output)) is not None:
            overwrite(handle, stored["content"])
            if isinstance(output, CSVOutputFormat):
                output.keys = list(stored["keys"])
        if isinstance(output, TensorBoardOutputFormat) and node["tensorboard"] is not None:
            _continue_tensorboard(logger, output, os.path.normpath(folder / node["tensorboard"]), time)


def _continue_tensorboard(logger: Logger, output: TensorBoardOutputFormat, folder: str, time: int) -> None:
    """Write into the run of the checkpoint, and hide what was logged there after the checkpoint."""
    new = Path(output.writer.log_dir)
    output.writer.close()
    if new.resolve() != Path(folder).resolve():
        if logger.dir is not None and Path(logger.dir) == new:
            logger.dir = folder
        with contextlib.suppress(OSError):  # something else is in there
            for path in new.glob("events.out.tfevents.*"):
                path.unlink()
            new.rmdir()
    output.writer = SummaryWriter(log_dir=folder, purge_step=time + 1)
