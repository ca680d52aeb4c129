"""
Another implementation under measurement: a program that answers one request per line (docs: guide/speed).

The program is started once and stays alive, so that it imports and compiles once, not in every turn.
"""

import contextlib
import json
import math
import os
import queue
import shlex
import signal
import subprocess
import threading
from collections import deque
from typing import Any

Answer = dict[str, Any]


class ExternalError(RuntimeError):
    """The program did not do what the protocol asks for; the message says what it did instead."""


class External:
    """
    A running program.

    :param command: Its command line, without a shell around it
    :param threads: Threads that it may use (it sees them as ``OMP_NUM_THREADS`` and in every request)
    :param timeout: Seconds it may take for one answer
    """

    def __init__(self, command: str, threads: int, timeout: float):
        self.command, self.timeout = command, timeout
        try:
            self._process = subprocess.Popen(
                shlex.split(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # so that its own children can be ended with it
            )
        except (OSError, ValueError, IndexError) as error:
            raise ExternalError(f"cannot start {command!r}: {error}") from error
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._words: deque[str] = deque(maxlen=5)
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_answers, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._words.append(line.decode(errors="replace").rstrip())

    def describe(self) -> Answer:
        """What the program is: ``name``, ``versions`` and ``algorithms``."""
        answer = self.ask({"request": "describe"})
        algorithms = answer.get("algorithms")
        if not isinstance(algorithms, list) or not all(isinstance(name, str) for name in algorithms):
            raise ExternalError(f"{self.command!r} does not say which algorithms it has: {shorten(json.dumps(answer))}")
        return {
            "name": str(answer.get("name", self.command)),
            "versions": answer.get("versions", {}),
            "algorithms": algorithms,
        }

    def measure(self, algorithm: str, settings: dict[str, Any]) -> dict[str, float]:
        """
        :param algorithm: Name of the algorithm on the command line
        :param settings: Sizes, threads and time of the measurement
        :return: Numbers under the names of our own, at least ``updates_per_second``
        """
        answer = self.ask({"request": "measure", "algorithm": algorithm, "settings": settings})
        numbers = {key: float(value) for key, value in answer.items() if isinstance(value, int | float)}
        wrong = [key for key, value in numbers.items() if not (math.isfinite(value) and value >= 0)]
        if wrong or numbers.get("updates_per_second", 0.0) <= 0:
            raise ExternalError(
                f"{self.command!r} has no valid updates_per_second for {algorithm}: {shorten(json.dumps(answer))}"
            )
        return numbers

    def ask(self, request: dict[str, Any]) -> Answer:
        """
        One question, one answer.

        :param request: Becomes one line of JSON
        :raises ExternalError: If the answer is an error, not JSON, late, or does not come
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=self.timeout)
        except OSError:
            line = None
        except queue.Empty:
            raise ExternalError(
                f"{self.command!r} did not answer within {self.timeout:g} s (--timeout): {shorten(json.dumps(request))}"
            ) from None
        if line is None:
            raise ExternalError(f"{self.command!r} ended with status {self._status()}; its last words: {self._last_words()}")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            text = shorten(line.decode(errors="replace"))
            raise ExternalError(f"{self.command!r} wrote {text!r}, not a JSON object; all but answers belongs on stderr")
        if "error" in answer:
            raise ExternalError(f"{self.command!r} reports: {answer['error']}")
        return answer

    def _status(self, patience: float = 5.0) -> int | None:
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None

    def _last_words(self) -> str:
        self._readers[1].join(timeout=5.0)
        return "\n".join(self._words) or "(none)"

    def close(self, patience: float = 5.0) -> None:
        """
        Close the program's input, which asks it to end, and end it if it does not.

        :param patience: Seconds to wait
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if self._status(patience) is None:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
            self._process.wait()


def shorten(text: str, length: int = 200) -> str:
    """The beginning of a text."""
    text = text.strip()
    return text if len(text) <= length else f"{text[:length]}..."
