"""
A Hub on the loopback interface, for tests: repositories with commits, branches and large files, over the part of the REST
interface that huggingface_hub 2.4 uses to create, send, list and download. It knows one token and is strict about it.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".zip", ".pth", ".mp4", ".npz", ".pkl")


@dataclass
class Commit:
    """One state of a repository: its files by path, each either content or the digest of a large file."""

    oid: str
    message: str
    files: dict[str, bytes | str]


@dataclass
class StoredRepository:
    private: bool
    commits: list[Commit]
    branches: dict[str, str]

    def resolve(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)


@dataclass
class Fault:
    """Answers requests whose ``METHOD path`` matches with a status, or holds them until they are released."""

    pattern: str
    status: int = 0
    skip: int = 0  # so many matching requests are still answered
    body: bytes = b"{}"
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class HubServer(ThreadingHTTPServer):
    """
    :param token: The only token that is accepted
    """

    daemon_threads = True

    def __init__(self, token: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.repositories: dict[str, StoredRepository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def tree(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Content of all files."""
        commit = self.repositories[repo_id].resolve(revision)
        assert commit is not None
        return {path: self.content(entry) for path, entry in commit.files.items()}

    def content(self, entry: bytes | str) -> bytes:
        return self.large[entry] if isinstance(entry, str) else entry

    def put(self, repo_id: str, files: dict[str, bytes], *, private: bool = True) -> str:
        """Store a commit without asking anybody, as a stranger's repository has come into being."""
        repository = self.repositories.setdefault(repo_id, StoredRepository(private, [], {}))
        entries: dict[str, bytes | str] = {}
        for path, content in files.items():
            entries[path] = content
            if path.endswith(LARGE):
                entries[path] = digest = hashlib.sha256(content).hexdigest()
                self.large[digest] = content
        return self.commit(repository, "main", "", entries)

    def commit(self, repository: StoredRepository, branch: str, message: str, files: dict[str, bytes | str]) -> str:
        oid = hashlib.sha1(f"{len(repository.commits)} {message} {sorted(files)}".encode()).hexdigest()
        repository.commits.append(Commit(oid, message, files))
        repository.branches[branch] = oid
        return oid


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self.command != "GET" else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = unquote(url.path)
        line = f"{self.command} {path}"
        with self.server.lock:
            self.server.requests.append(line)
        if self._fault(line):
            return
        for pattern, answer in ROUTES:
            match = re.fullmatch(pattern, line)
            if match:
                with self.server.lock:
                    answer(self, *match.groups())
                return
        self.server.problems.append(f"unknown request: {line}")
        self._json({"error": "unknown"}, 404)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _fault(self, line: str) -> bool:
        with self.server.lock:
            fault = next((fault for fault in self.server.faults if re.search(fault.pattern, line)), None)
            if fault is None:
                return False
            if fault.skip > 0:
                fault.skip -= 1
                return False
        fault.reached.set()
        if fault.status:
            self._send(fault.status, fault.body, {"Content-Type": "application/json"})
        else:
            fault.release.wait(60)
            self.close_connection = True
        return True

    # answers

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _authorized(self) -> bool:
        """Whether the request has the token; otherwise it is answered like the Hub does."""
        header = self.headers.get("Authorization")
        if header == f"Bearer {self.server.token}":
            return True
        message = "Invalid username or password." if header is None else "Invalid credentials in Authorization header"
        self._json({"error": message}, 401, {"X-Error-Message": message})
        return False

    def _repository(self, repo_id: str) -> StoredRepository | None:
        """The repository if it exists and may be seen; otherwise the request is answered."""
        repository = self.server.repositories.get(repo_id)
        if repository is None:
            if self._authorized():
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        return repository if not repository.private or self._authorized() else None

    def _commit(self, repo_id: str, revision: str) -> Commit | None:
        repository = self._repository(repo_id)
        if repository is None:
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return commit

    # the interface

    def create(self) -> None:
        if not self._authorized():
            return
        order = json.loads(self.body)
        repo_id = f"{order['organization']}/{order['name']}"
        url = f"{self.server.endpoint}/{repo_id}"
        if repo_id in self.server.repositories:
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        repository = StoredRepository(order.get("visibility") == "private", [], {})
        self.server.repositories[repo_id] = repository
        self.server.commit(repository, "main", "initial commit", {".gitattributes": b""})
        self._json({"url": url})

    def branch(self, repo_id: str, name: str) -> None:
        if not self._authorized():
            return
        repository = self.server.repositories[repo_id]
        if name in repository.branches:
            self._json({"error": "Reference already exists"}, 409)
            return
        repository.branches[name] = repository.branches["main"]
        self._json({})

    def info(self, repo_id: str, revision: str | None) -> None:
        commit = self._commit(repo_id, revision or "main")
        if commit is None:
            return
        repository = self.server.repositories[repo_id]
        files = [{"rfilename": path} for path in commit.files]
        self._json({"id": repo_id, "sha": commit.oid, "private": repository.private, "siblings": files})

    def list_files(self, repo_id: str, revision: str) -> None:
        commit = self._commit(repo_id, revision)
        if commit is None:
            return
        entries = []
        for path, stored in commit.files.items():
            content = self.server.content(stored)
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            if isinstance(stored, str):
                entry["lfs"] = {"oid": stored, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, repo_id: str, revision: str) -> None:
        if not self._authorized():
            return
        commit = self._commit(repo_id, revision)
        if commit is None:
            return
        answers = []
        for file in json.loads(self.body)["files"]:
            stored = commit.files.get(file["path"])
            oid = stored if isinstance(stored, str) else git_oid(stored) if stored is not None else None
            mode = "lfs" if file["path"].endswith(LARGE) and file["size"] else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def batch(self, repo_id: str) -> None:
        if not self._authorized():
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.large:
                address = f"{self.server.endpoint}/{repo_id}/storage/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def store(self, repo_id: str, oid: str) -> None:
        if self.headers.get("Authorization"):
            self.server.problems.append(f"the token was sent to the storage of {repo_id}")
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.server.problems.append(f"content of {oid} does not have this digest")
            self._json({"error": "wrong digest"}, 400)
            return
        self.server.large[oid] = self.body
        self._send(200, b"")

    def verify(self, repo_id: str, oid: str) -> None:
        if not self._authorized():
            return
        asked = json.loads(self.body)
        stored = self.server.large.get(oid)
        good = stored is not None and asked == {"oid": oid, "size": len(stored)}
        self._json({}, 200 if good else 400)

    def receive_commit(self, repo_id: str, branch: str) -> None:
        if not self._authorized():
            return
        repository = self.server.repositories[repo_id]
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        current = repository.resolve(branch)
        assert current is not None
        if "parentCommit" not in header:
            self.server.problems.append("the commit does not say what it follows, so it may undo somebody else's")
        if header.get("parentCommit") not in (None, current.oid):
            self._json({"error": "A commit has happened since."}, 412)
            return
        files = dict(current.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.large:
                    self.server.problems.append(f"{value['path']} was committed but never sent")
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.server.commit(repository, branch, header["summary"], files)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{oid}"})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self._commit(repo_id, revision)
        if commit is None:
            return
        if path not in commit.files:
            self._json({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid})
            return
        stored = commit.files[path]
        content = self.server.content(stored)
        etag = stored if isinstance(stored, str) else git_oid(content)
        self._send(200, content, {"X-Repo-Commit": commit.oid, "ETag": f'"{etag}"'})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("POST /api/repos/create", Handler.create),
    ("POST /api/validate-yaml", Handler.validate),
    (f"GET /api/models/{REPO}(?:/revision/(.+))?", Handler.info),
    (f"GET /api/models/{REPO}/tree/([^/]+)", Handler.list_files),
    (f"POST /api/models/{REPO}/branch/(.+)", Handler.branch),
    (f"POST /api/models/{REPO}/preupload/(.+)", Handler.preupload),
    (f"POST /api/models/{REPO}/commit/(.+)", Handler.receive_commit),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (f"PUT /{REPO}/storage/([0-9a-f]+)", Handler.store),
    (f"POST /{REPO}/storage/([0-9a-f]+)/verify", Handler.verify),
    (f"(?:GET|HEAD) /{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]
