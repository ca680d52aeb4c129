"""The folder of an agent that can be published: what is in it, and how it is checked, read and put in its place."""

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

from sb3_diffusion.checkpoints.archives import open_archive
from sb3_diffusion.checkpoints.tagged_json import parse_json

from ..training.runs.text_files import read_yaml

MB = 1_000_000
SETTINGS = ("config.yml", "args.yml", "env_kwargs.yml")
# Largest sizes that are accepted, beside the archive with the agent.
SIZES = {
    **dict.fromkeys((*SETTINGS, "results.json", "README.md"), MB),
    "vec_normalize.pkl": 50 * MB,
    "train_eval_metrics.zip": 200 * MB,
    "replay.mp4": 200 * MB,
}
SOURCE = "hub.json"  # in a downloaded folder: where it comes from


def check_folder(folder: Path, name: str) -> list[Path]:
    """
    The files of an agent's folder, complete and of the layout.

    :param folder: The folder
    :param name: Name of the agent
    :raises ValueError: If a file is missing or does not belong there
    """
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    known = {f"{name}.zip", *SIZES, SOURCE}
    for path in files:
        if path.is_symlink() or path.parent != folder or path.name not in known:
            raise ValueError(f"{path} does not belong into an agent's folder; nothing was sent.")
    missing = {f"{name}.zip", *SETTINGS, "results.json", "README.md"} - {path.name for path in files}
    if missing:
        raise ValueError(f"{folder} has no {sorted(missing)[0]}; write it again without --as-written.")
    return [path for path in files if path.name not in (SOURCE, "vec_normalize.pkl")]


def check_download(folder: Path, name: str) -> None:
    """
    Read all that can be read without running anything.

    :param folder: Downloaded files
    :param name: Name of the agent
    :raises ValueError: If a file is not what it should be; the message names it
    """
    for settings in SETTINGS:
        if (folder / settings).is_file():
            read_yaml(folder / settings)
    for archive in (f"{name}.zip", "train_eval_metrics.zip"):
        if (folder / archive).is_file():
            with open_archive(folder / archive):
                pass
    read_results(folder)


def read_results(folder: Path) -> dict[str, Any]:
    """
    Scores and circumstances of an agent.

    :param folder: Agent's folder
    :return: Content of ``results.json``, empty if there is none
    """
    return _read_json(folder / "results.json")


def read_source(folder: Path) -> dict[str, Any]:
    """
    Where a downloaded agent comes from.

    :param folder: Agent's folder
    :return: Address of the Hub, repository and revision; empty if it was not downloaded
    """
    return _read_json(folder / SOURCE)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > MB:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {MB} that it may have.")
    try:
        content = parse_json(path.read_bytes(), "it")
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a mapping.")
    return content


def replace_folder(new: Path, target: Path, name: str) -> None:
    """
    Put a folder that is complete in the place of another.

    :param new: Complete folder on the same disk
    :param target: Place; what is there must be an agent's folder
    :param name: Name of the agent
    """
    if target.exists():
        known = {f"{name}.zip", *SIZES, SOURCE}
        strangers = (
            sorted(path.name for path in target.iterdir() if path.name not in known) if target.is_dir() else [target.name]
        )
        if strangers:
            raise ValueError(
                f"{target} exists and contains {strangers[0]}, which is not part of an agent; choose another folder."
            )
        shutil.rmtree(target)
    new.rename(target)


def zipped(files: dict[str, bytes]) -> bytes:
    """
    An archive that depends on nothing but its content.

    :param files: Content by name
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
