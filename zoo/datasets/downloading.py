"""Downloads that go on where they stopped, and end with the right file or none."""

import contextlib
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sb3_diffusion.files import put_in_place
from sb3_diffusion.printable import printable, quoted

TIMEOUT = 60.0
BLOCK = 1 << 18
BEGINNINGS = {".hdf5": b"\x89HDF\r\n\x1a\n", ".npz": b"PK\x03\x04"}
"""Suffix -> how such a file begins."""


class DownloadError(RuntimeError):
    """A download that failed; the message says why and what to do."""


def download(url: str, target: Path, *, sha256: str | None = None, show_bar: bool = True) -> Path:
    """
    Fetch a file. What has arrived is kept beside the target until the file is complete, and continued from there.

    :param url: Where from
    :param target: The file
    :param sha256: Its checksum, if it is known
    :param show_bar: Show a progress bar
    :return: The file
    :raises DownloadError: If the server does not deliver, or something else than was expected
    :raises ValueError: If the address is none
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no address of the web; give one that begins with http:// or https://.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target)
    with _clear_errors(url, part), _open(url, part) as answer:
        total = _total(answer, part)
        _receive(answer, part, total, target.name, show_bar)
        if total is not None and part.size != total:
            raise DownloadError(
                f"{url} ended after {part.size:,} of {total:,} bytes; repeat the command, which goes on from there."
            )
    _check(url, part, target, sha256)
    put_in_place(part.path, target)
    part.forget()
    return target


class _Part:
    """What has arrived of a file, and by what the server knows it again."""

    def __init__(self, target: Path):
        self.path = target.with_name(f".{target.name}.part")
        self._note = target.with_name(f".{target.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def validator(self) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            note = json.loads(self._note.read_text(encoding="utf-8"))
            return note if isinstance(note, str) else None
        return None

    def begin(self, validator: str | None) -> None:
        """Forget what is there; another file, or none, was begun."""
        self.path.write_bytes(b"")
        self._note.write_text(json.dumps(validator), encoding="utf-8")

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _open(url: str, part: _Part) -> Any:
    headers = {"User-Agent": "sb3_diffusion", "Accept-Encoding": "identity"}
    # without a validator nobody knows whether the rest belongs to the same file
    if part.size and part.validator is not None:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def _total(answer: HTTPResponse, part: _Part) -> int | None:
    """Size of the whole file, if the server says it; a server that begins anew makes us begin anew."""
    if (kind := answer.headers.get_content_type()) in ("text/html", "application/xhtml+xml"):
        raise DownloadError(f"{answer.url} answers with a page ({kind}), not a file; the server refuses, or has moved it.")
    if answer.status == 206:
        unit, _, rest = (answer.headers.get("Content-Range") or "").partition(" ")
        start, size = rest.partition("-")[0], rest.rpartition("/")[2]
        if unit != "bytes" or start != str(part.size) or not size.isdigit():
            raise DownloadError(f"{answer.url} sends {quoted(rest)} instead of the rest; delete {part.path} and try again.")
        return int(size)
    part.begin(_validator(answer))
    length = answer.headers.get("Content-Length") or ""
    return int(length) if length.isdigit() else None


def _validator(answer: HTTPResponse) -> str | None:
    """Only a strong one says that two files are equal byte by byte."""
    tag = answer.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _receive(answer: HTTPResponse, part: _Part, total: int | None, name: str, show_bar: bool) -> None:
    with (
        part.path.open("ab") as file,
        tqdm(
            total=total,
            initial=part.size,
            desc=name,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=not show_bar,
        ) as bar,
    ):
        while block := answer.read(BLOCK):
            file.write(block)
            bar.update(len(block))
            if total is not None and file.tell() > total:
                break


def _check(url: str, part: _Part, target: Path, sha256: str | None) -> None:
    with part.path.open("rb") as file:
        head = file.read(16)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)
    beginning = BEGINNINGS.get(target.suffix, b"")
    if not head.startswith(beginning):
        part.forget()
        raise DownloadError(f"{url} sent no {target.suffix} file (it begins with {head!r}); nothing was kept.")
    if sha256 is not None and digest != sha256.lower():
        part.forget()
        raise DownloadError(f"{url} sent a file with the checksum {digest} instead of {sha256}; nothing was kept, try again.")


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _clear_errors(url: str, part: _Part) -> Iterator[None]:
    """Errors of the connection in one sentence."""
    try:
        yield
    except urllib.error.HTTPError as error:
        if error.code == 416:  # more has arrived than the file has by now
            part.forget()
            raise DownloadError(f"{url} is another file by now; repeat the command, which begins anew.") from error
        said = f"{error.code} ({printable(error.reason)})"
        raise DownloadError(f"{url} answers {said}; the server does not give the file now.") from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = printable(getattr(error, "reason", None) or error or type(error).__name__)
        kept = f" {part.size:,} bytes are kept, from which the same command goes on." if part.size else ""
        raise DownloadError(f"{url} could not be fetched ({reason}); check the network and try again.{kept}") from error
