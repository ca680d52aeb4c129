"""A progress bar that follows a counter which callbacks may set back or forth."""

from collections.abc import Iterator
from typing import Any


class ProgressBar:
    """
    One bar at a time, with a name.

    :param enabled: Whether to show anything
    :raises ImportError: If it is enabled and tqdm is not installed
    """

    def __init__(self, enabled: bool):
        self._make: Any = None
        self._bar: Any = None
        self._name: str | None = None
        if enabled:
            try:
                from tqdm import tqdm
            except ImportError as error:
                raise ImportError("progress_bar=True needs tqdm: pip install tqdm, or stable-baselines3[extra].") from error
            self._make = tqdm

    def show(self, name: str, done: int, total: int) -> None:
        """
        :param name: What is going on; another one begins another bar
        :param done: How much of it is done
        :param total: How much there is
        """
        if self._make is None:
            return
        if name != self._name:
            self.close()
            self._name, self._bar = name, self._make(total=total, desc=name, initial=done)
        else:
            self._bar.update(done - self._bar.n)

    def over(self, name: str, n_rows: int, rows_at_once: int) -> Iterator[slice]:
        """
        Go through rows in pieces.

        :param name: What is done with them
        :param n_rows: How many there are
        :param rows_at_once: How many a piece has at most
        :return: The pieces
        """
        for start in range(0, n_rows, rows_at_once):
            yield slice(start, min(start + rows_at_once, n_rows))
            self.show(name, min(start + rows_at_once, n_rows), n_rows)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar = self._name = None
