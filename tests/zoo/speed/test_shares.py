"""``zoo/speed/shares.py`` as a user runs it."""

import json
from pathlib import Path

from tests.zoo.processes import check, run, script


def test_speed_shares(tmp_path: Path) -> None:
    effort = ["--repetitions", "2", "--warmup", "20", "--steps", "20", "--threads", "1", "--batch-size", "8", "--n-envs", "2"]
    args = ["--env", "Pendulum-v1", "--algo", "qsm", "sac", "--device", "cpu", "--buffer-size", "100"]
    out = check(run(script("speed/shares"), *args, *effort, cwd=tmp_path))
    assert "| qsm |" in out
    report = json.loads((tmp_path / "speed_shares.json").read_text(encoding="utf-8"))
    assert report["settings"]["env"] == "Pendulum-v1"
    for result in report["results"].values():
        assert len(result["turns"]) == 2
        assert set(result["shares"]) == {"environment", "acting", "storing", "sampling", "update", "rest"}
        assert all(share > 0.0 for share in result["shares"].values())
        for turn in result["turns"]:
            assert sum(turn.values()) > 0.0
        assert result["ms"]["update"] > result["ms"]["sampling"]
