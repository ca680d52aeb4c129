"""A disk that is full (or has become read-only, or whose quota is used up) costs what cannot be written, not the training."""

import contextlib
import sys
from collections.abc import Iterator

import gymnasium as gym
from stable_baselines3.common.logger import DISABLED, KVWriter, Logger
from stable_baselines3.common.monitor import Monitor, ResultsWriter

_warned: set[str] = set()


@contextlib.contextmanager
def going_on(what: str) -> Iterator[None]:
    """
    Around the writing of a file: if that fails, say so once for each kind of file, and go on.

    :param what: What is lost then, in words
    """
    try:
        yield
    except OSError as error:
        if what not in _warned:
            _warned.add(what)
            print(f"Warning: {what} cannot be written ({error}); the training goes on. This is said once.", file=sys.stderr)


class GuardedLogger(Logger):
    """Writes to all outputs, whatever happens to one of them."""

    def dump(self, step: int = 0) -> None:
        """
        :param step: Current step
        """
        if self.level == DISABLED:
            return
        for output in self.output_formats:
            if isinstance(output, KVWriter):
                with going_on(f"the log of {type(output).__name__.removesuffix('OutputFormat')}"):
                    output.write(self.name_to_value, self.name_to_excluded, step)
        for values in (self.name_to_value, self.name_to_count, self.name_to_excluded):
            values.clear()


class GuardedWriter(ResultsWriter):
    """
    Takes the place of a monitor's writer.

    :param writer: The writer, whose file is open already
    """

    def __init__(self, writer: ResultsWriter):
        self.file_handler, self.logger = writer.file_handler, writer.logger

    def write_row(self, epinfo: dict[str, float]) -> None:
        """
        :param epinfo: One episode
        """
        with going_on(f"{self.file_handler.name}"):
            super().write_row(epinfo)

    def close(self) -> None:
        """Close the file."""
        with going_on(f"{self.file_handler.name}"):
            super().close()


def guard_monitor(env: gym.Env) -> gym.Env:
    """
    :param env: An environment, perhaps with a monitor that writes a file
    :return: The same, which goes on when the file cannot be written
    """
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, Monitor) and layer.results_writer is not None:
            layer.results_writer = GuardedWriter(layer.results_writer)
        layer = layer.env
    return env
