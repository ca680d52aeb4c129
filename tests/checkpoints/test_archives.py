"""Zip archives made to do harm."""

import io
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from types import MappingProxyType

import pytest

from sb3_diffusion import load_agent
from sb3_diffusion.checkpoints.archives import open_archive

TEN_GIGABYTES = 10 * 2**30


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return content.getvalue()


def member(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.filename = name  # as it is, whatever the constructor makes of it
    info.external_attr = mode << 16
    return info


def zeros(size: int) -> bytes:
    """A deflate stream of that many zeros (a multiple of 1 MiB), without ever holding them."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return block * (size // 2**20) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def lying_zip(name: str, stream: bytes, declared: int) -> bytes:
    """An archive of one member that declares whatever size it likes."""
    sizes = struct.pack("<LLL", 0, len(stream), min(declared, 2**32 - 1))
    common = struct.pack("<HHHHH", 45, 0, zipfile.ZIP_DEFLATED, 0, 33) + sizes + struct.pack("<H", len(name))
    large = struct.pack("<HHQ", 1, 8, declared) if declared >= 2**32 - 1 else b""
    local = b"PK\x03\x04" + common + struct.pack("<H", 0) + name.encode() + stream
    central = b"PK\x01\x02" + struct.pack("<H", 45) + common + struct.pack("<HHHHLL", len(large), 0, 0, 0, 0, 0)
    central += name.encode() + large
    return local + central + b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(central), len(local), 0)


def refused(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason), open_archive(content, "bad.zip") as archive:
        for name in archive.sizes:
            archive.read(name)


def test_what_is_fine(tmp_path: Path) -> None:
    content = zipped(("a/b.txt", b"1"), ("a/", b""), ("..c", b"2"), ("big", bytes(2**20)), method=zipfile.ZIP_DEFLATED)
    with open_archive(content) as archive:
        assert dict(archive.sizes) == {"a/b.txt": 1, "..c": 1, "big": 2**20}
        assert archive.read("a/b.txt") == b"1"
        files = archive.extract(tmp_path / "new")
        with pytest.raises(ValueError, match=r"has no member 'data'; it has a/b.txt"):
            archive.read("data")
        with pytest.raises(ValueError, match=r"'a/b.txt' is in the way of a file .*use an empty folder"):
            archive.extract(tmp_path / "new")
    assert sorted(file.relative_to(tmp_path).as_posix() for file in files) == ["new/..c", "new/a/b.txt", "new/big"]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("/etc/passwd", "absolute path"),
        ("//host/x", "absolute path"),
        ("C:/x", "absolute path"),
        ("C:x", "absolute path"),
        ("../x", "path with '..'"),
        ("a/../../x", "path with '..'"),
        ("a\\..\\x", "backslash"),
        ("a\0b", "NUL"),
        ("a\x1b[2Jb", "cannot be printed"),
        ("a\nb", "cannot be printed"),
        ("\u202egpj.exe", "cannot be printed"),
    ],
)
def test_names(name: str, reason: str, tmp_path: Path) -> None:
    content = zipped(("first", b"1"), (member(name), b"x"))
    with pytest.raises(ValueError, match=r"bad.zip: member .*" + reason), open_archive(content, "bad.zip") as archive:
        archive.extract(tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_text_of_the_archive_does_not_command_the_terminal() -> None:
    for name in ("\x1b[2J", "\u202e", "a\nb\0c"):
        with pytest.raises(ValueError) as caught, open_archive(zipped((member(name), b"x")), "bad.zip"):
            pass
        assert str(caught.value).isprintable()


def test_links_and_devices() -> None:
    for mode in (0o120777, 0o010644, 0o020644, 0o060644):
        refused(zipped((member("policy.pth", mode), b"/etc/passwd")), "'policy.pth' is a link or another special file")


def test_a_link_on_this_side_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").symlink_to(tmp_path / "outside")
    with open_archive(zipped(("a/b", b"1"))) as archive, pytest.raises(ValueError, match="'a/b' leads out of"):
        archive.extract(tmp_path / "target")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates() -> None:
    refused(zipped(("data", b"1"), ("data", b"2")), "'data' occurs twice")
    refused(zipped(("data", b"1"), ("DATA", b"2")), "'DATA' occurs twice")


def test_overlapping_members() -> None:
    content = bytearray(zipped(("a", b"1" * 100), ("b", b"2" * 100)))
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = struct.pack("<L", 10)  # where its header is said to be
    refused(bytes(content), "'b' overlaps another member")


def test_other_methods_and_encryption() -> None:
    refused(zipped(("a", b"1"), method=zipfile.ZIP_LZMA), "compressed by a method other than deflate")
    content = bytearray(zipped(("a", b"1")))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    refused(bytes(content), "'a' is encrypted")


def test_too_many_members() -> None:
    refused(zipped(*((str(i), b"") for i in range(10_001))), "it has 10,001 members, more than 10,000")


def test_limits_by_declared_size() -> None:
    content = zipped(("a", bytes(2000)), ("b", bytes(2000)))
    with pytest.raises(ValueError, match="'a' declares 2,000 bytes"), open_archive(content, "bad.zip", max_member_bytes=1999):
        pass
    with pytest.raises(ValueError, match="declare 4,000 bytes"), open_archive(content, "bad.zip", max_total_bytes=3999):
        pass
    with open_archive(content) as archive, pytest.raises(ValueError, match="a declares 2,000 bytes, more than the 1,999"):
        archive.read("a", max_bytes=1999)


@pytest.mark.parametrize("declared", [100, 4 * 2**20, 2**29, TEN_GIGABYTES])
def test_a_bomb_of_ten_gigabytes(declared: int, tmp_path: Path) -> None:
    bomb = lying_zip("sb3_diffusion.json", zeros(TEN_GIGABYTES), declared)
    assert len(bomb) < 16 * 2**20
    path = tmp_path / "bomb.zip"
    path.write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb.zip: .*sb3_diffusion.json.* (is damaged|declares)"):
        load_agent(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20
    assert list(tmp_path.iterdir()) == [path]


def test_a_bomb_within_the_weights() -> None:
    inner = zipped(("archive/data.pkl", bytes(50 * 2**20)), method=zipfile.ZIP_DEFLATED)
    content = zipped(("sb3_diffusion.json", b"{}"), ("policy.pth", inner))
    refused(zipped(("a", bytes(50 * 2**20)), method=zipfile.ZIP_DEFLATED), r"'a' would grow from [\d,]+ to 52,428,800 bytes")
    with open_archive(content) as archive:
        weights = archive.read("policy.pth")
    with pytest.raises(ValueError, match=r"data.pkl' is compressed"), open_archive(weights, compressed=False):
        pass


def test_what_is_read_counts_too() -> None:
    with open_archive(zipped(("a", bytes(2**21)))) as archive:
        archive.sizes = MappingProxyType({"a": 10})
        with pytest.raises(ValueError, match="a is larger than the 1,000 bytes"):
            archive.read("a", max_bytes=1000)
        with pytest.raises(ValueError, match="a is truncated"):
            archive.read("a")


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 100, b"PK\x05\x06" + bytes(18)[:10]])
def test_no_zip(content: bytes) -> None:
    refused(content, "bad.zip is no zip archive, or is truncated")
