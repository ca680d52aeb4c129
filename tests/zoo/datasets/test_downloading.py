"""Downloads from a server on this machine: complete or continued, and never the wrong file."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from zoo.datasets.downloading import DownloadError, download

from .file_server import FileServer

CONTENT = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer(CONTENT)
    yield server
    server.shutdown()
    server.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_with_a_bar(server: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = download(server.url, tmp_path / "new" / "file.hdf5", sha256=SHA256.upper())
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["file.hdf5"]
    assert "100%" in capfd.readouterr().err


def test_a_download_goes_on_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    server.break_after = 300_000
    for arrived in (300_000, 600_000):
        with pytest.raises(DownloadError, match=r"ended after|goes on"):
            download(server.url, tmp_path / "file.hdf5")
        assert names(tmp_path) == [".file.hdf5.part", ".file.hdf5.part.json"]
        assert (tmp_path / ".file.hdf5.part").stat().st_size == arrived
    server.break_after = None
    assert download(server.url, tmp_path / "file.hdf5", sha256=SHA256).read_bytes() == CONTENT
    assert names(tmp_path) == ["file.hdf5"]
    assert [request.get("Range") for request in server.requests] == [None, "bytes=300000-", "bytes=600000-"]


@pytest.mark.parametrize("change", ["another file", "no ranges"])
def test_a_server_that_begins_anew(change: str, server: FileServer, tmp_path: Path) -> None:
    server.break_after = 300_000
    with pytest.raises(DownloadError):
        download(server.url, tmp_path / "file.hdf5")
    server.break_after = None
    if change == "another file":
        server.content, server.tag = CONTENT[:500_000] + b"other", '"second"'
    else:
        server.ranges = False
    assert download(server.url, tmp_path / "file.hdf5").read_bytes() == server.content


def test_a_page_is_no_file(server: FileServer, tmp_path: Path) -> None:
    server.page = "<html>403 Forbidden</html>"
    with pytest.raises(DownloadError, match=r"answers with a page \(text/html\)"):
        download(server.url, tmp_path / "file.hdf5")
    assert names(tmp_path) == []


def test_what_does_not_begin_as_it_should(server: FileServer, tmp_path: Path) -> None:
    server.content = b"Access denied"
    with pytest.raises(DownloadError, match=r"sent no \.hdf5 file .*Access denied.*nothing was kept"):
        download(server.url, tmp_path / "file.hdf5")
    assert names(tmp_path) == []


def test_another_checksum(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"checksum {SHA256} instead of {'0' * 64}"):
        download(server.url, tmp_path / "file.hdf5", sha256="0" * 64)
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_refusals(status: int, server: FileServer, tmp_path: Path) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=f"answers {status}"):
        download(server.url, tmp_path / "file.hdf5")


def test_nobody_answers(server: FileServer, tmp_path: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"could not be fetched.*check the network"):
        download(server.url, tmp_path / "file.hdf5")
    with pytest.raises(ValueError, match="no address of the web"):
        download("file:///etc/passwd", tmp_path / "file.hdf5")
