"""
Trained agents as folders that can be published and downloaded (docs: guide/hub).

``write_repository`` turns a run into such a folder, ``push`` sends one to the Hub, ``download`` fetches one. The layout is
that of rl-zoo3's repositories, with an archive that can be read without unpickling. Three things that only the Hub and
rl-zoo3's own tools read are added while sending and exist nowhere else: the archive's members as single files,
``vec_normalize.pkl`` and ``.gitattributes``.
"""

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from sb3_diffusion.checkpoints.agents import NORMALIZATION
from sb3_diffusion.checkpoints.archives import open_archive
from sb3_diffusion.printable import printable, quoted

from .publication import write_repository
from .published import PublishedAgent, agent_name
from .repository import SIZES, SOURCE, check_download, check_folder, replace_folder

__all__ = ["HubError", "Repository", "contents", "download", "push", "write_repository"]

ARCHIVE_SIZE = 2_000_000_000
MAX_FILES = 1_000
GIT_ATTRIBUTES = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in ("zip", "pth", "mp4", "npz", "pkl"))
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
# The HTTP library that raises errors of the connection changes between releases of huggingface_hub; its base class is here.
CONNECTION_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # type: ignore[assignment]


class HubError(RuntimeError):
    """Something went wrong with the Hub; the message is one line that says what and what to do, without secrets."""


@dataclass(frozen=True)
class Repository:
    """
    A repository on the Hub.

    :param organization: User or organisation
    :param name: Name of the repository
    :param endpoint: Address of the Hub; by default the environment variable ``HF_ENDPOINT`` or the public Hub
    """

    organization: str
    name: str
    endpoint: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("--organization", self.organization), ("--repo-name", self.name)):
            if not NAME.fullmatch(value) or ".." in value or "--" in value:
                raise ValueError(
                    f"{option} {quoted(value)} cannot be a name on the Hub; use letters, digits, '.', '_' and '-'."
                )

    @property
    def id(self) -> str:
        """Name with organisation."""
        return f"{self.organization}/{self.name}"

    @property
    def api(self) -> HfApi:
        """Client of the Hub."""
        return HfApi(endpoint=self.endpoint, library_name="sb3_diffusion")

    @property
    def url(self) -> str:
        """Address for people."""
        return f"{self.api.endpoint}/{self.id}"


def _token() -> str | None:
    """The user's token, if it is long enough not to be an ordinary word."""
    token = huggingface_hub.get_token()
    return token if token and len(token) >= 8 else None


def redact(message: str) -> str:
    """
    A message without the user's token or anything that looks like one.

    :param message: Any text
    """
    token = _token()
    if token:
        message = message.replace(token, "<token>")
    return TOKEN.sub("<token>", message)


@contextlib.contextmanager
def _clear_errors(repository: Repository, action: str, hint: str = "") -> Iterator[None]:
    """
    Turn what the client of the Hub raises into one line.

    :param repository: What is being talked to
    :param action: What was being done
    :param hint: What it means for the user's files
    """
    try:
        yield
    except (CONNECTION_ERROR, EntryNotFoundError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, HubError):
            raise
        reason = printable(redact(f"{action} {repository.url} failed: {_reason(error, repository)}{hint}"))
        raise HubError(reason) from None  # the chain behind it may quote headers


def _reason(error: BaseException, repository: Repository) -> str:
    """What to tell about an error, or about the answer of the Hub that lies behind it."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for link in chain:
        if isinstance(link, RevisionNotFoundError):
            return "404, there is no such revision; leave --revision out for the newest."
        if isinstance(link, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE forbids the connection; unset it."
        if isinstance(link, HfHubHTTPError):
            return _answer(link, repository)
    for link in chain:
        if isinstance(link, CONNECTION_ERROR | ConnectionError | TimeoutError):
            return f"no connection ({type(link).__name__}); check the network and HF_ENDPOINT, then repeat the command."
    lines = [line.strip() for line in str(chain[-1]).splitlines() if line.strip()]
    return f"{type(chain[-1]).__name__}: {' '.join(lines)[:300]}"


def _answer(error: HfHubHTTPError, repository: Repository) -> str:
    """What an answer of the Hub means."""
    status = error.response.status_code
    if status in (401, 403):
        word = "401, the token is missing, wrong, or" if status == 401 else "403, the token"
        return f"{word} may not do this, or {repository.id} does not exist; log in with 'hf auth login' or set HF_TOKEN."
    if status == 404 or isinstance(error, RepositoryNotFoundError):
        return f"404, {repository.id} does not exist, or is private and needs a token; check -orga and --repo-name."
    if status in (409, 412):
        return f"{status}, somebody else changed {repository.id} at the same time; repeat the command."
    if status == 429:
        return "429, too many requests; wait some minutes and repeat the command."
    if status >= 500:
        return f"{status}, the Hub has a problem of its own; repeat the command in some minutes."
    return f"{status}, {' '.join((error.server_message or str(error)).split())[:300]}"


# ---------------------------------------------------------------------------------------------------------- sending


def contents(folder: Path, algo: str, env_id: str, trusted: bool = False) -> dict[str, bytes | Path]:
    """
    All that is sent: the files of the folder and what only rl-zoo3's tools read.

    :param folder: Agent's folder
    :param algo: Algorithm
    :param env_id: Environment
    :param trusted: Whether the settings in it are the user's own, and may name any wrapper
    :return: By name in the repository, where to find the content, or the content itself
    :raises ValueError: If the folder is not complete, or a file contains the user's token
    """
    name = agent_name(algo, env_id)
    files: dict[str, bytes | Path] = {path.name: path for path in check_folder(folder, name)}
    files[".gitattributes"] = GIT_ATTRIBUTES.encode()
    with open_archive(folder / f"{name}.zip") as archive:
        members = {member: archive.read(member) for member in archive.sizes}
    for member, content in members.items():
        files[f"{name}/{member}"] = content
    if NORMALIZATION in members:
        files["vec_normalize.pkl"] = _pickled_statistics(PublishedAgent(folder, env_id, algo, trust=trusted))
    for path, source in files.items():
        check_secrets({path: source.read_bytes() if isinstance(source, Path) else source, "the name of a file": path})
    return files


def check_secrets(texts: Mapping[str, str | bytes]) -> None:
    """
    :param texts: What is to be sent, under a name for the message
    :raises ValueError: If the user's token, or anything that looks like one, is in it
    """
    token = _token()
    for name, text in texts.items():
        content = text.encode(errors="replace") if isinstance(text, str) else text
        if (token and token.encode() in content) or re.search(TOKEN.pattern.encode(), content):
            raise ValueError(f"{redact(printable(name))} contains a token of the Hub; nothing was sent. Remove it there.")


def _pickled_statistics(agent: PublishedAgent) -> bytes:
    """Statistics of the normalisation in the form that rl-zoo3 reads."""
    env = agent.make_env()
    statistics = unwrap_vec_normalize(env)
    assert isinstance(statistics, VecNormalize)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vec_normalize.pkl")
        statistics.save(str(path))
        content = path.read_bytes()
    env.close()
    return content


def push(
    folder: Path,
    repository: Repository,
    algo: str,
    env_id: str,
    *,
    message: str = "Upload agent",
    public: bool = False,
    revision: str | None = None,
    trusted: bool = False,
) -> str:
    """
    Send an agent's folder as one commit: either all of it appears on the Hub or nothing.

    :param folder: Agent's folder, as ``write_repository`` leaves it
    :param repository: Where to; it is created if it does not exist
    :param algo: Algorithm
    :param env_id: Environment
    :param message: Commit message
    :param public: Whether everybody may see a new repository, and whether to send to one that everybody sees
    :param revision: Branch, created if it does not exist; by default the main one
    :param trusted: Whether the settings in the folder are the user's own
    :return: Identifier of the commit
    """
    check_secrets({"the commit message": message, "the revision": revision or "", "the repository": repository.id})
    files = contents(folder, algo, env_id, trusted)
    api = repository.api
    if huggingface_hub.get_token() is None:
        raise HubError("no token of the Hub was found; log in with 'hf auth login' or set HF_TOKEN.")
    with _clear_errors(repository, "sending to", " Nothing was published; --as-written repeats without a new evaluation."):
        api.create_repo(repository.id, private=not public, exist_ok=True)
        if revision is not None:
            api.create_branch(repository.id, branch=revision, exist_ok=True)
        info = api.model_info(repository.id, revision=revision)
        if not public and not info.private:
            raise HubError(f"{repository.url} exists and is public; add --public to publish there. Nothing was sent.")
        if public and info.private:
            print(f"{repository.url} exists and stays private; its settings on the Hub change that.")
        name = agent_name(algo, env_id)
        old = {file.rfilename for file in info.siblings or [] if _in_layout(file.rfilename, name)} - set(files)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(path) for path in sorted(old)]
        operations += [CommitOperationAdd(path, source) for path, source in sorted(files.items())]
        commit = api.create_commit(
            repository.id, operations, commit_message=message, revision=revision, parent_commit=info.sha, num_threads=2
        )
    return str(commit.oid)


def _in_layout(path: str, name: str) -> bool:
    return path in SIZES or path == f"{name}.zip" or path.startswith(f"{name}/")


# ------------------------------------------------------------------------------------------------------- downloading


def download(repository: Repository, algo: str, env_id: str, target: Path, *, revision: str | None = None) -> str:
    """
    Fetch an agent. Only files of the layout are fetched; nothing in them is run, nothing is written outside the target.

    :param repository: Where from
    :param algo: Algorithm
    :param env_id: Environment
    :param target: Folder of the agent, replaced when everything is there
    :param revision: Branch, tag or commit; by default the newest
    :return: The commit
    :raises HubError: If the Hub does not deliver
    :raises ValueError: If a file is refused
    """
    name = agent_name(algo, env_id)
    api = repository.api
    with _clear_errors(repository, "downloading from"):
        commit = str(api.model_info(repository.id, revision=revision).sha)
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise HubError(f"{repository.url} answers with {quoted(commit)} as its commit.")
        entries = [entry for entry in api.list_repo_tree(repository.id, recursive=True, revision=commit)]
    wanted = _choose(repository, [entry for entry in entries if isinstance(entry, RepoFile)], name)
    with _clear_errors(repository, "downloading from"):
        snapshot = Path(api.snapshot_download(repository.id, revision=commit, allow_patterns=sorted(wanted), max_workers=4))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        for path, entry in wanted.items():
            _copy(snapshot / path, new / path, entry)
        source = {"endpoint": api.endpoint, "repository": repository.id, "revision": commit, "asked_for": revision}
        (new / SOURCE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        check_download(new, name)
        replace_folder(new, target, name)
    return commit


def _choose(repository: Repository, files: list[RepoFile], name: str) -> dict[str, RepoFile]:
    """The files of the layout; an error if one of them is too large, or if any name tries to leave the folder."""
    if len(files) > MAX_FILES:
        raise ValueError(f"{repository.url} has {len(files)} files, more than {MAX_FILES}: not an agent's repository.")
    limits = {f"{name}.zip": ARCHIVE_SIZE, **SIZES}
    wanted = {}
    for file in files:
        path = PurePosixPath(file.path)
        if not file.path.isprintable():
            raise ValueError(f"{repository.url} is refused: the file name {quoted(file.path)} cannot be printed.")
        if path.is_absolute() or ".." in path.parts or "\\" in file.path or ":" in file.path or "\0" in file.path:
            raise ValueError(f"{repository.url} is refused: the file name {quoted(file.path)} leaves the folder.")
        if file.path not in limits:
            continue
        if file.size > limits[file.path]:
            raise ValueError(f"{repository.url} is refused: {file.path} has {file.size} bytes, more than {limits[file.path]}.")
        wanted[file.path] = file
    if f"{name}.zip" not in wanted:
        raise ValueError(f"{repository.url} contains no {name}.zip; check --algo and --env.")
    return wanted


def _copy(source: Path, target: Path, entry: RepoFile) -> None:
    """Copy a file out of the cache of huggingface_hub, where it is a link, and check that it is what was promised."""
    real = source.resolve(strict=True)
    cache = source.parents[2].resolve()  # <cache>/models--<organisation>--<name>/snapshots/<commit>/<file>
    if not real.is_file() or not real.is_relative_to(cache):
        raise ValueError(f"{source} is refused: it leads out of the cache, to {real}.")
    content = real.read_bytes()
    if len(content) != entry.size:
        raise ValueError(f"{entry.path} is refused: it has {len(content)} bytes instead of {entry.size}; download it again.")
    if entry.lfs is not None and hashlib.sha256(content).hexdigest() != entry.lfs.sha256:
        raise ValueError(f"{entry.path} is refused: its content does not have the checksum that the Hub tells.")
    target.write_bytes(content)
