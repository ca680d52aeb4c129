"""Tables of numbers of states: in memory, in a file that is gone with the process, and in one that stays."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch as th

from sb3_diffusion.data.state_table import DamagedTable, make_table, open_table

CPU = th.device("cpu")
VALUES = th.arange(30.0).view(5, 2, 3)


def pieces() -> Iterator[th.Tensor]:
    yield VALUES[:2]
    yield VALUES[2:]


@pytest.mark.parametrize("limit", [0, 1000])
@pytest.mark.parametrize("kept", [False, True])
def test_it_holds_its_pieces_wherever_it_is(kept: bool, limit: int, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "table" if kept else None
    table = make_table(pieces(), VALUES.shape, CPU, path, limit)
    th.testing.assert_close(table.values, VALUES, rtol=0, atol=0)
    assert table.checksum == make_table(iter([VALUES]), VALUES.shape, CPU).checksum
    if path is not None:
        assert [file.name for file in path.parent.iterdir()] == ["table"]
        again = open_table(path, VALUES.shape, CPU, table.checksum, limit)
        th.testing.assert_close(again.values, VALUES, rtol=0, atol=0)
        again.values[0] = 7.0  # the file is not changed through the table
        open_table(path, VALUES.shape, CPU, table.checksum, limit)


def test_a_large_one_without_a_folder_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    table = make_table(pieces(), VALUES.shape, CPU, limit=0)
    assert not list(tmp_path.iterdir()) and float(table.values.sum()) == float(VALUES.sum())


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "table"
    checksum = make_table(pieces(), VALUES.shape, CPU, path).checksum
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    for damaged, message in ((bytes(content), "checksum"), (bytes(content[:-4]), "116 bytes instead of 120")):
        path.write_bytes(damaged)
        with pytest.raises(DamagedTable, match=message):
            open_table(path, VALUES.shape, CPU, checksum)
    path.unlink()
    with pytest.raises(DamagedTable, match="is missing"):
        open_table(path, VALUES.shape, CPU, checksum)


def test_an_interruption_leaves_the_file_of_before(tmp_path: Path) -> None:
    def interrupted() -> Iterator[th.Tensor]:
        yield VALUES[:2]
        raise KeyboardInterrupt

    path = tmp_path / "table"
    checksum = make_table(pieces(), VALUES.shape, CPU, path).checksum
    with pytest.raises(KeyboardInterrupt):
        make_table(interrupted(), VALUES.shape, CPU, path)
    open_table(path, VALUES.shape, CPU, checksum)
    assert [file.name for file in tmp_path.iterdir()] == ["table"]
