"""Reading zip archives that somebody else made: every name and size is checked before a member is opened."""

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType

from sb3_diffusion.printable import printable, quoted

MAX_MEMBERS = 10_000
MAX_MEMBER_BYTES = 2**30
MAX_TOTAL_BYTES = 4 * 2**30
MAX_RATIO = 100
"""Uncompressed bytes per compressed byte, for members above :data:`SMALL` bytes."""
SMALL = 2**24
_CHUNK = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


class Archive:
    """
    A zip archive whose directory has been checked; made by :func:`open_archive`.

    :param reader: The archive
    :param name: What the error messages call the file
    """

    def __init__(self, reader: zipfile.ZipFile, name: str):
        self._reader = reader
        self.name = name
        self.sizes = MappingProxyType({info.filename: info.file_size for info in reader.infolist() if not info.is_dir()})
        """Member -> declared size in bytes."""

    def read(self, member: str, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
        """
        Contents of a member.

        :param member: Its name
        :param max_bytes: Largest size that is accepted
        :raises ValueError: If it is missing, too large or damaged
        """
        if member not in self.sizes:
            raise ValueError(
                f"{self.name} has no member {member!r}; it has {printable(', '.join(self.sizes), 500) or 'none'}."
            )
        if self.sizes[member] > max_bytes:
            raise ValueError(
                f"{self.name}: {member} declares {self.sizes[member]:,} bytes, more than the {max_bytes:,} allowed here; "
                "the file is damaged or hostile, do not use it."
            )
        content = io.BytesIO()
        for chunk in self._chunks(member, max_bytes):
            content.write(chunk)
        return content.getvalue()

    def extract(self, folder: str | Path) -> list[Path]:
        """
        Write all members into a folder, which is made if necessary.

        :param folder: The folder; nothing is written outside it, and no file in it is overwritten
        :return: The files
        """
        root = Path(folder).resolve()
        targets = {member: root.joinpath(*PurePosixPath(member).parts) for member in self.sizes}
        for member, target in targets.items():
            if not target.resolve().is_relative_to(root):
                raise ValueError(f"{self.name}: {member!r} leads out of {root} through a link; extract into an empty folder.")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    for chunk in self._chunks(member, MAX_MEMBER_BYTES):
                        file.write(chunk)
            except (FileExistsError, NotADirectoryError) as error:
                raise ValueError(
                    f"{self.name}: {member!r} is in the way of a file ({printable(error)}); use an empty folder."
                ) from error
        return list(targets.values())

    def _chunks(self, member: str, max_bytes: int) -> Iterator[bytes]:
        """The member piece by piece; what it really contains counts, not only what it declares."""
        n_read = 0
        try:
            with self._reader.open(member) as file:
                while chunk := file.read(_CHUNK):
                    n_read += len(chunk)
                    if n_read > max_bytes:
                        raise ValueError(f"{self.name}: {member} is larger than the {max_bytes:,} bytes allowed here.")
                    yield chunk
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise ValueError(f"{self.name}: {member} is damaged ({printable(error)}); get the file again.") from error
        if n_read != self.sizes[member]:
            raise ValueError(f"{self.name}: {member} is truncated; get the file again.")


@contextmanager
def open_archive(
    source: str | os.PathLike | io.IOBase | bytes,
    name: str | None = None,
    max_member_bytes: int = MAX_MEMBER_BYTES,
    max_total_bytes: int = MAX_TOTAL_BYTES,
    compressed: bool = True,
) -> Iterator[Archive]:
    """
    Open a zip archive for reading after a check of its directory: no member may lie outside the folder it would be unpacked
    to, be a link, occur twice, overlap another one, or be larger than allowed.

    :param source: Path, open binary file, or contents of the archive
    :param name: What the error messages call it, the path by default
    :param max_member_bytes: Largest size of a member
    :param max_total_bytes: Largest size of all members together
    :param compressed: Whether members may be compressed
    :raises ValueError: Naming the file, the member and the reason
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if name is None:
        name = str(source) if isinstance(source, str | os.PathLike) else "the archive"
    try:
        reader = zipfile.ZipFile(file)  # type: ignore[arg-type]
    # ValueError and the others: a directory of nonsense
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{name} is no zip archive, or is truncated ({printable(error)}); get the file again.") from error
    with reader:
        # a truncated archive of archives ends with the directory of one of its members
        if min((info.header_offset for info in reader.infolist()), default=reader.start_dir) != 0:
            raise ValueError(f"{name} is no zip archive, or is truncated (something precedes it); get the file again.")
        reason = _reason_against(reader, max_member_bytes, max_total_bytes, compressed)
        if reason is not None:
            raise ValueError(f"{name}: {reason}; the file is damaged or hostile, do not use it.")
        yield Archive(reader, name)


def _reason_against(reader: zipfile.ZipFile, max_member_bytes: int, max_total_bytes: int, compressed: bool) -> str | None:
    members = reader.infolist()
    if len(members) > MAX_MEMBERS:
        return f"it has {len(members):,} members, more than {MAX_MEMBERS:,}"
    seen: set[str] = set()
    total, end = 0, -1
    for info in sorted(members, key=lambda info: info.header_offset):
        reason = _reason_against_name(info) or _reason_against_size(info, max_member_bytes, compressed)
        key = info.filename.casefold().rstrip("/")  # what some file systems take for the same
        if reason is None and key in seen:
            reason = "occurs twice"
        if reason is None and info.header_offset < end:
            reason = "overlaps another member"
        if reason is not None:
            return f"member {quoted(info.orig_filename)} {reason}"
        seen.add(key)
        total += info.file_size
        end = info.header_offset + info.compress_size
    if total > max_total_bytes:
        return f"its members declare {total:,} bytes, more than the {max_total_bytes:,} allowed here"
    return None


def _reason_against_name(info: zipfile.ZipInfo) -> str | None:
    name = info.orig_filename  # zipfile cuts a name at a NUL
    if not name or "\0" in name:
        return "has an empty name or one with a NUL"
    if not name.isprintable():
        return "has characters that cannot be printed in its name"
    if "\\" in name:
        return "has a backslash in its name"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        return "has an absolute path"
    if ".." in PurePosixPath(name).parts:
        return "has a path with '..'"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or another special file"
    return None


def _reason_against_size(info: zipfile.ZipInfo, max_bytes: int, compressed: bool) -> str | None:
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return "is compressed by a method other than deflate"
    if not compressed and info.compress_size != info.file_size:
        return "is compressed, which it never is"
    if info.file_size > max_bytes:
        return f"declares {info.file_size:,} bytes, more than the {max_bytes:,} allowed here"
    if info.file_size > max(SMALL, MAX_RATIO * info.compress_size):
        return f"would grow from {info.compress_size:,} to {info.file_size:,} bytes"
    return None
