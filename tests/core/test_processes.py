"""Two processes that train together equal one with twice the environments."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch as th

from tests.cases import ROOT
from tests.core.two_processes import main
from tests.golden_tools import close


def test_two_processes_equal_one_with_twice_the_environments(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.core.two_processes"]
    both = [subprocess.Popen([*command, str(rank), "2", str(tmp_path)], cwd=ROOT) for rank in (0, 1)]
    main(0, 1, tmp_path)
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    alone, first, second = (th.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name, weights in alone["weights"].items():
        both_have: Any = first["weights"][name]
        assert th.equal(both_have, second["weights"][name]), name
        close(both_have.float(), weights.float(), rtol=1e-4, atol=1e-5)
    close(th.tensor(first["rates"]), th.tensor(alone["rates"]))
    assert first["rates"] != [1e-4, 1e-3]  # they were adapted, by what both had seen
