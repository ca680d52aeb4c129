"""
The command line tools in one process that stays alive, so that its imports are paid once: one order per line of standard
input, one answer per line of standard output. The environment variables of huggingface_hub, which are read when it is
imported, are those of this process.
"""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from tests.zoo.processes import ROOT

TOOLS = ("train", "push_to_hub", "load_from_hub", "enjoy")


class Result(NamedTuple):
    """What a command has left behind."""

    status: int
    out: str
    err: str


def environment(endpoint: str, home: Path, token: str | None) -> dict[str, str]:
    """
    Variables of a client that knows nothing but the loopback Hub.

    :param endpoint: Address of the Hub
    :param home: Folder for the cache
    :param token: The user's token
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept.pop("DISPLAY", None)
    return {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        **({"HF_TOKEN": token} if token else {}),
    }


class Client:
    """
    A running client.

    :param variables: Its environment
    """

    def __init__(self, variables: dict[str, str]):
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def run(self, tool: str, *arguments: str, cwd: Path, **variables: str | None) -> Result:
        """
        :param tool: Name of a script of the zoo
        :param arguments: Its command line
        :param cwd: Folder to run in
        :param variables: Environment variables to change for this command, ``None`` to remove one
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"tool": tool, "arguments": arguments, "cwd": str(cwd), "variables": variables}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Result(*json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def execute(order: dict[str, Any]) -> tuple[int, str, str]:
    """Run one command in this process."""
    os.chdir(order["cwd"])
    before = dict(os.environ)
    for name, value in order["variables"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [order["tool"], *order["arguments"]]
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            importlib.import_module(f"zoo.{order['tool']}").main()
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:
            status = 1
            traceback.print_exc()
    os.environ.clear()
    os.environ.update(before)
    return status, out.getvalue(), err.getvalue()


def main() -> None:
    """Answer orders until there are no more."""
    answers = sys.stdout
    from huggingface_hub.utils import _http

    with contextlib.redirect_stdout(sys.stderr):
        for tool in TOOLS:
            importlib.import_module(f"zoo.{tool}")
    _http.time.sleep = lambda seconds: None  # type: ignore[attr-defined]  # what is repeated is repeated at once
    for line in sys.stdin:
        print(json.dumps(execute(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
