"""Rows of experiments: what is there is not done again."""

from pathlib import Path

from zoo.benchmarking.rows import Rows


def test_rows_come_one_by_one_and_are_found_again(tmp_path: Path) -> None:
    table = Rows(tmp_path / "rows.csv", ("name", "gain", "seed", "score"), ("name", "gain", "seed"))
    arm = {"name": "a", "gain": 2**0.5, "seed": 0}
    assert table.read() == [] and not table.has(arm)
    table.add([{**arm, "score": 1.23456789}])
    assert table.has(arm) and table.has({**arm, "score": "of another run"})
    assert not table.has({**arm, "seed": 1})
    Rows(tmp_path / "rows.csv", table.fields, table.key).add([{**arm, "seed": 1}])  # another process goes on
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8") == "name,gain,seed,score\na,1.414,0,1.235\na,1.414,1,\n"
    assert table.has({**arm, "seed": 1})
