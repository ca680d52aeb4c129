"""
Publishing and downloading, against a Hub on the loopback interface.

Every command runs in a client process that knows that Hub only. Agents are trained with networks of sixteen units.
"""

import base64
import functools
import io
import json
import pickle
import re
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch as th
import yaml

import zoo.enjoy
from sb3_diffusion import SDAC, OfflineDataset
from tests.zoo.forks import Forks, Process
from tests.zoo.hub.client import Client, Result, environment
from tests.zoo.hub.server import Fault, HubServer
from tests.zoo.processes import script
from zoo.training.runs.text_files import read_yaml, write_yaml

TOKEN = "hf_canaryCANARYcanaryCANARY0123"
ENV = "Pendulum-v1"
NAME = f"sdac-{ENV}"
REPO = f"me/{NAME}"
AGENT = ["--algo", "sdac", "--env", ENV]
PUSH = [*AGENT, "-orga", "me", "--n-eval-episodes", "1", "--no-video", "--device", "cpu"]
ACT = [*AGENT, "--no-render", "-n", "400", "--seed", "3", "--device", "cpu"]
LAYOUT = {f"{NAME}.zip", "config.yml", "args.yml", "env_kwargs.yml", "train_eval_metrics.zip", "results.json", "README.md"}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Client, Path]]:
    """The Hub and a client of it."""
    server = HubServer(TOKEN)
    home = tmp_path_factory.mktemp("home")
    client = Client(environment(server.endpoint, home, TOKEN))
    yield server, client, home
    client.close()
    server.shutdown()
    server.server_close()


Users = Callable[..., Process]


@pytest.fixture(scope="module")
def users(process: tuple[HubServer, Client, Path]) -> Iterator[Users]:
    """Starts commands in processes of their own."""
    server, _, home = process
    variables = environment(server.endpoint, home, TOKEN)
    forks = Forks(variables)
    yield functools.partial(forks.start, variables=variables)
    forks.close()


@pytest.fixture(scope="module")
def runs(process: tuple[HubServer, Client, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished trainings: one plain, one with a normalisation."""
    folder = tmp_path_factory.mktemp("runs")
    length = ["--env", ENV, "-n", "120", "--eval-freq", "60", "--eval-episodes", "1", "--seed", "1"]
    where = ["--device", "cpu", "--verbose", "0", "-tb", str(folder / "tensorboard")]
    params = ["learning_starts:60", "buffer_size:5000", "policy_kwargs:dict(net_arch=[16],diffusion_steps=2)"]
    for algo, own in (("sdac", "n_particles:2"), ("qsm", "normalize:True")):
        result = process[1].run("train", "--algo", algo, *length, *where, "-params", *params, own, cwd=folder)
        assert result.status == 0, result.err
    return folder


SENT: dict[str, bytes] = {}  # by the first push of this module


class Hub:
    """A fresh Hub, a client with an empty cache, and a folder to work in."""

    def __init__(self, server: HubServer, client: Client, home: Path, cwd: Path, runs: Path):
        self.server, self.client, self.home, self.cwd, self.runs = server, client, home, cwd, runs
        self.sent = SENT

    def run(self, tool: str, *arguments: str, **variables: str | None) -> Result:
        result = self.client.run(tool, *arguments, cwd=self.cwd, **variables)
        assert TOKEN not in result.out + result.err
        assert "Traceback" not in result.err, result.err
        return result

    def good(self, tool: str, *arguments: str, **variables: str | None) -> str:
        result = self.run(tool, *arguments, **variables)
        assert result.status == 0, result.err
        assert self.server.problems == []
        return result.out

    def bad(self, tool: str, *arguments: str, **variables: str | None) -> str:
        """The one line with which a command fails."""
        result = self.run(tool, *arguments, **variables)
        assert result.status == 2, result.out + result.err
        return result.err.splitlines()[-1]

    def push(self, *arguments: str) -> str:
        return self.good("push_to_hub", *PUSH, "-f", str(self.runs / "logs"), *arguments)

    def stranger(self, **changes: bytes | None) -> None:
        """Publish the folder of our agent with some files changed, as ``stranger/...``."""
        files: dict[str, bytes | None] = dict(self.published())
        files.update({name.replace("__", "/"): content for name, content in changes.items()})
        self.server.put(f"stranger/{NAME}", {name: content for name, content in files.items() if content is not None})

    def written(self) -> None:
        """Makes sure that ``--as-written`` has something to send."""
        if not (self.runs / "logs" / "sdac" / f"{ENV}_1" / "hub" / NAME).is_dir():
            self.push("--dry-run")

    def published(self) -> dict[str, bytes]:
        """What a push of our agent sends, and the Hub as if it had just happened."""
        if not self.sent:
            self.push()
            self.sent.update(self.server.tree(REPO))
        if REPO not in self.server.repositories:
            self.server.put(REPO, self.sent)
        return self.sent


@pytest.fixture
def hub(process: tuple[HubServer, Client, Path], runs: Path, tmp_path: Path) -> Hub:
    server, client, home = process
    for collection in (server.repositories, server.large, server.requests, server.problems, server.faults):
        collection.clear()  # type: ignore[attr-defined]
    shutil.rmtree(home, ignore_errors=True)
    return Hub(server, client, home, tmp_path, runs)


def scores(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(("Episode reward", "Mean"))]


# ------------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("actions", ["--deterministic", "--stochastic"])
def test_round_trip(hub: Hub, actions: str) -> None:
    before = scores(hub.good("enjoy", *ACT, actions, "-f", str(hub.runs / "logs")))
    assert len(before) == 4
    out = hub.push("--exp-id", "1")
    assert f"Published as {hub.server.endpoint}/{REPO}, revision " in out
    repository = hub.server.repositories[REPO]
    assert repository.private
    assert len(repository.commits) == 2  # the Hub's own first one, and ours

    out = hub.good("enjoy", *ACT, actions, "--from-hub", "-orga", "me")
    assert f"Downloading {hub.server.endpoint}/{REPO}" in out
    assert f"Revision {repository.commits[-1].oid} is in {Path('hub', REPO)}" in out
    assert scores(out) == before
    requests = len(hub.server.requests)
    assert scores(hub.good("enjoy", *ACT, actions, "--from-hub", "-orga", "me")) == before
    assert len(hub.server.requests) == requests  # what is there is not asked for again


def test_round_trip_with_normalisation(hub: Hub) -> None:
    agent = ["--algo", "qsm", *ACT[2:]]
    before = scores(hub.good("enjoy", *agent, "-f", str(hub.runs / "logs")))
    hub.push("--algo", "qsm")
    tree = hub.server.tree(f"me/qsm-{ENV}")
    assert "vec_normalize.pkl" in tree  # for rl-zoo3's own reader
    assert f"qsm-{ENV}/vec_normalize.npz" in tree
    assert scores(hub.good("enjoy", *agent, "--from-hub", "-orga", "me")) == before
    downloaded = {path.name for path in (hub.cwd / "hub" / "me" / f"qsm-{ENV}").iterdir()}
    (hub.cwd / "hub" / "me" / f"qsm-{ENV}" / "vec_normalize.pkl").write_bytes(b"not a pickle: nobody opens it")
    assert "vec_normalize.pkl" in downloaded
    assert scores(hub.good("enjoy", *agent, "--from-hub", "-orga", "me")) == before


def test_round_trip_of_what_was_learned_from_data(hub: Hub) -> None:
    OfflineDataset.collect(ENV, None, 300, seed=0).save(hub.cwd / "swings.npz")
    small = ["batch_size:16", "buffer_size:1000", "learning_starts:5", "policy_kwargs:dict(net_arch=[16])"]
    length = ["--env", ENV, "-n", "40", "--online-steps", "30", "--eval-freq", "-1", "--seed", "1", "--device", "cpu"]
    hub.good("train", "--algo", "iql", *length, "--dataset", str(hub.cwd / "swings.npz"), "-params", *small)
    agent = ["--algo", "iql", *ACT[2:]]
    before = scores(hub.good("enjoy", *agent, "-f", "logs"))
    hub.good("push_to_hub", *PUSH, "--algo", "iql", "-f", "logs")
    tree = hub.server.tree(f"me/iql-{ENV}")
    assert b"swings" in tree["README.md"] and not any(name.endswith("swings.npz") for name in tree)
    assert not any(str(hub.cwd).encode() in content for content in tree.values())  # nobody needs to know where it was
    (hub.cwd / "swings.npz").unlink()
    assert scores(hub.good("enjoy", *agent, "--from-hub", "-orga", "me")) == before


def test_scripts_as_a_user_calls_them(hub: Hub, users: Users) -> None:
    def call(name: str, *arguments: str) -> str:
        process = users(script(name), *arguments, cwd=hub.cwd)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert TOKEN not in out + err
        return out

    call("push_to_hub", *PUSH, "-f", str(hub.runs / "logs"))
    assert len(scores(call("enjoy", *ACT, "--from-hub", "-orga", "me"))) == 4
    assert hub.server.problems == []


def test_what_is_published(hub: Hub) -> None:
    hub.push()
    tree = hub.server.tree(REPO)
    unpacked = {name for name in tree if name.startswith(f"{NAME}/")}
    assert set(tree) - unpacked == LAYOUT | {".gitattributes"}
    assert {f"{NAME}/sb3_diffusion.json", f"{NAME}/policy.pth", f"{NAME}/data"} <= unpacked
    with zipfile.ZipFile(io.BytesIO(tree[f"{NAME}.zip"])) as archive:
        assert unpacked == {f"{NAME}/{member}" for member in archive.namelist()}
    for settings in ("config.yml", "args.yml", "env_kwargs.yml"):
        assert b"!!python" not in tree[settings]
        assert isinstance(yaml.safe_load(tree[settings]), dict)
    assert yaml.safe_load(tree["config.yml"])["n_particles"] == 2
    for content in tree.values():  # no path, no name of this machine
        assert str(hub.runs).encode() not in content
    results = json.loads(tree["results.json"])
    kinds = [(evaluation["is_deterministic"], evaluation.get("evaluation_noise")) for evaluation in results["evaluations"]]
    assert kinds == [(True, "fixed"), (True, "fresh"), (False, None)]
    assert results["mean_reward"] == results["evaluations"][0]["mean_reward"]
    assert results["training"]["timesteps"] == 120
    assert results["training"]["seed"] == 1
    assert results["versions"]["torch"]
    front = yaml.safe_load(tree["README.md"].split(b"---\n")[1])
    assert front["model-index"][0]["name"] == "SDAC"
    with zipfile.ZipFile(io.BytesIO(tree["train_eval_metrics.zip"])) as archive:
        assert set(archive.namelist()) == {"evaluations.npz", "0.monitor.csv"}


def test_published_agent_keeps_its_settings_and_no_more(hub: Hub) -> None:
    """The run is loaded with a small memory; what is published says how it was trained. Optimizers forget."""
    hub.push("--dry-run", "--output", str(hub.cwd))
    path = hub.cwd / NAME / f"{NAME}.zip"
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("data"))["buffer_size"] == 5000
        assert json.loads(archive.read("sb3_diffusion.json"))["arguments"]["buffer_size"] == 5000
        assert b"tensorboard/" not in archive.read("data")
        assert th.load(io.BytesIO(archive.read("actor.optimizer.pth")), weights_only=True)["state"] == {}
        assert {info.date_time[0] for info in archive.infolist()} == {1980}  # the time of day would change the digest
    agent = SDAC.load(path, buffer_size=1)
    assert agent.num_timesteps == 120


def test_rl_zoo3_reads_the_repository(hub: Hub, users: Users) -> None:
    pytest.importorskip("requests")
    hub.push("--algo", "qsm")
    program = (
        "import os; os.environ['TRUST_REMOTE_CODE'] = 'True'\n"
        "from rl_zoo3.load_from_hub import download_from_hub; from huggingface_sb3 import EnvironmentName\n"
        f"download_from_hub('qsm', EnvironmentName({ENV!r}), 0, 'theirs', 'me')"
    )
    process = users("-c", program, cwd=hub.cwd)
    assert process.communicate() and process.returncode == 0
    folder = hub.cwd / "theirs" / "qsm" / f"{ENV}_1"
    assert (folder / f"{ENV}.zip").is_file()
    assert (folder / ENV / "vecnormalize.pkl").is_file()
    out = hub.good("enjoy", "--algo", "qsm", *ACT[2:], "-f", "theirs")
    assert scores(out) == scores(hub.good("enjoy", "--algo", "qsm", *ACT[2:], "-f", str(hub.runs / "logs")))


def test_pretrained_agents_act_without_a_run(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Offline, in an empty folder; with a run of the user's own, that one acts."""
    hub.push("--dry-run", "--output", str(hub.cwd / "pretrained"))
    hub.server.requests.clear()
    monkeypatch.setattr(zoo.enjoy, "PRETRAINED", hub.cwd / "pretrained")
    monkeypatch.chdir(hub.cwd)

    def act(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["enjoy.py", *ACT, *arguments])
        zoo.enjoy.main()
        return capsys.readouterr().out

    out = act()
    assert f"(there is no run in {Path('logs', 'sdac')}): using the pretrained agent {hub.cwd / 'pretrained' / NAME}" in out
    own = act("-f", str(hub.runs / "logs"))
    assert f"Loading {hub.runs / 'logs'}" in own
    assert scores(out) == scores(own)
    with pytest.raises(SystemExit):
        act("--exp-id", "2")
    assert "--exp-id may be nothing: there are no runs yet" in capsys.readouterr().err
    assert hub.server.requests == []


# ----------------------------------------------------------------------------------------------------- the Hub's answers


def test_traffic_is_what_huggingface_hub_sends(hub: Hub) -> None:
    """The server answers all that the client asks; this is the list for release 2.4."""
    hub.written()
    hub.push("--as-written")
    sent = [re.sub(r"[0-9a-f]{40,}", "<id>", request) for request in hub.server.requests]
    assert sent[:2] == ["POST /api/repos/create", f"GET /api/models/{REPO}"]
    assert sent[2] == "POST /api/validate-yaml"
    assert sent[3] == f"POST /api/models/{REPO}/preupload/main"
    assert sent[4] == f"POST /{REPO}.git/info/lfs/objects/batch"
    assert set(sent[5:-1]) == {f"PUT /{REPO}/storage/<id>", f"POST /{REPO}/storage/<id>/verify"}
    assert sent[-1] == f"POST /api/models/{REPO}/commit/main"
    hub.server.requests.clear()
    hub.good("load_from_hub", *AGENT, "-orga", "me")
    asked = [re.sub(r"[0-9a-f]{40,}", "<id>", request) for request in hub.server.requests]
    assert asked[0] == f"GET /api/models/{REPO}"
    assert asked[1] == f"GET /api/models/{REPO}/tree/<id>"
    files = {request for request in asked[2:] if "/resolve/" in request}
    assert {f"HEAD /{REPO}/resolve/<id>/{name}" for name in LAYOUT} <= files
    assert not any(request.endswith(".gitattributes") or f"<id>/{NAME}/" in request for request in files)


def test_repeated_push_changes_nothing(hub: Hub) -> None:
    hub.push()
    commits = len(hub.server.repositories[REPO].commits)
    hub.push("--as-written")
    assert len(hub.server.repositories[REPO].commits) == commits


def test_files_that_are_gone_are_deleted(hub: Hub) -> None:
    hub.written()
    hub.push("--as-written")
    repository = hub.server.repositories[REPO]
    old = repository.commits[-1].files | {"replay.mp4": b"", f"{NAME}/old.pth": b"", "notes.md": b"of somebody"}
    hub.server.commit(repository, "main", "by hand", old)
    hub.push("--as-written")
    assert {"replay.mp4", f"{NAME}/old.pth", "notes.md"} & set(hub.server.tree(REPO)) == {"notes.md"}


def test_private_by_default(hub: Hub) -> None:
    hub.written()
    hub.push("--public", "--as-written")
    assert not hub.server.repositories[REPO].private
    message = hub.bad("push_to_hub", *PUSH, "-f", str(hub.runs / "logs"), "--as-written")
    assert message.endswith(
        f"{hub.server.endpoint}/{REPO} exists and is public; add --public to publish there. Nothing was sent."
    )
    assert len(hub.server.repositories[REPO].commits) == 2


def test_dry_run_talks_to_nobody(hub: Hub) -> None:
    out = hub.good("push_to_hub", *PUSH, "-f", str(hub.runs / "logs"), "--dry-run", "--output", "out", HF_TOKEN=None)
    assert f"Would send {Path('out', NAME)} to {hub.server.endpoint}/{REPO}:" in out
    assert {path.name for path in (hub.cwd / "out" / NAME).iterdir()} == LAYOUT
    for name in (*LAYOUT, ".gitattributes", f"{NAME}/policy.pth"):
        assert re.search(rf"^ +\d+ {re.escape(name)}$", out, flags=re.MULTILINE)
    assert hub.server.requests == []


def test_revision(hub: Hub) -> None:
    hub.push("--revision", "draft")
    repository = hub.server.repositories[REPO]
    assert f"{NAME}.zip" not in hub.server.tree(REPO, "main")
    hub.push("--as-written")
    hub.push("--exp-id", "1")  # another evaluation, another commit
    oid = repository.branches["draft"]
    assert oid != repository.branches["main"]
    for revision in ("draft", oid):
        out = hub.good("load_from_hub", *AGENT, "-orga", "me", "--revision", revision)
        assert f"Revision {oid} is in" in out
    assert json.loads((hub.cwd / "hub" / REPO / "hub.json").read_text(encoding="utf-8"))["revision"] == oid
    message = hub.bad("load_from_hub", *AGENT, "-orga", "me", "--revision", "nothing")
    assert "404, there is no such revision" in message
    assert (hub.cwd / "hub" / REPO / f"{NAME}.zip").is_file()  # what was there is still there


@pytest.mark.parametrize("tool", ["push_to_hub", "load_from_hub"])
def test_wrong_token(hub: Hub, tool: str) -> None:
    hub.written()
    hub.published()
    arguments = [*PUSH, "-f", str(hub.runs / "logs"), "--as-written"] if tool == "push_to_hub" else [*AGENT, "-orga", "me"]
    other = "hf_wrongWRONGwrongWRONG01234567"
    message = hub.bad(tool, *arguments, HF_TOKEN=other)
    assert f"{hub.server.endpoint}/{REPO} failed: 401, " in message
    assert "hf auth login" in message
    assert other not in message
    message = hub.bad(tool, *arguments, HF_TOKEN=None)
    assert "hf auth login" in message


def test_missing_repository_and_missing_connection(hub: Hub) -> None:
    message = hub.bad("load_from_hub", *AGENT, "-orga", "nobody")
    assert f"downloading from {hub.server.endpoint}/nobody/{NAME} failed: 404, " in message
    assert not (hub.cwd / "hub").exists()
    hub.published()
    message = hub.bad("load_from_hub", "--algo", "qsm", "--env", ENV, "-orga", "me", "--repo-name", NAME)
    assert f"contains no qsm-{ENV}.zip; check --algo and --env." in message
    hub.server.faults.append(Fault("GET /api/models/"))
    hub.server.faults[0].release.set()
    message = hub.bad("load_from_hub", *AGENT, "-orga", "me")
    assert "no connection" in message


@pytest.mark.parametrize(
    ("pattern", "status", "body", "expected"),
    [
        ("POST /api/repos/create", 403, b"{}", "403, the token may not do this"),
        ("POST /api/models/.*/preupload/", 500, b"{}", "500, the Hub has a problem of its own"),
        ("POST /.*/objects/batch", 503, b"{}", "503, the Hub has a problem of its own"),
        ("POST /api/models/.*/commit/", 500, b"{}", "500, the Hub has a problem of its own"),
        ("POST /api/models/.*/commit/", 412, b"{}", "412, somebody else changed"),
        ("POST /api/models/.*/commit/", 429, b"{}", "429, too many requests"),
        (
            "POST /api/models/.*/commit/",
            400,
            json.dumps({"error": f"bad\nheader: {TOKEN}"}).encode(),
            "400, bad header: <token>",
        ),
        ("PUT /", 403, b"{}", "403, the token"),
    ],
)
def test_errors_of_the_hub(hub: Hub, pattern: str, status: int, body: bytes, expected: str) -> None:
    """One line says what happened; nothing is published; the same command works afterwards."""
    hub.written()
    hub.server.faults.append(Fault(pattern, status, body=body, skip=int(pattern.startswith("PUT"))))
    message = hub.bad("push_to_hub", *PUSH, "-f", str(hub.runs / "logs"), "--as-written")
    assert f"sending to {hub.server.endpoint}/{REPO} failed: {expected}" in message
    assert "Nothing was published" in message
    assert not any(len(repository.commits) > 1 for repository in hub.server.repositories.values())
    hub.server.faults.clear()
    hub.push("--as-written")
    assert f"{NAME}.zip" in hub.server.tree(REPO)


def wait_for_fault(hub: Hub, users: Users, fault: Fault, how: int) -> str:
    """What a user is told who ends the command in the moment of the fault."""
    hub.written()
    hub.server.faults.append(fault)
    process = users("-m", "zoo.push_to_hub", *PUSH, "-f", str(hub.runs / "logs"), "--as-written", cwd=hub.cwd)
    assert fault.reached.wait(100)
    process.send_signal(how)
    _, error = process.communicate(timeout=100)
    fault.release.set()
    assert TOKEN not in error
    hub.server.faults.clear()
    return error


def test_killed_while_sending(hub: Hub, users: Users) -> None:
    wait_for_fault(hub, users, Fault("PUT /", skip=1), signal.SIGKILL)
    stored = set(hub.server.large)
    assert len(stored) == 1  # one large file had arrived, another was on its way
    assert len(hub.server.repositories[REPO].commits) == 1
    hub.server.requests.clear()
    hub.push("--as-written")
    assert f"{NAME}.zip" in hub.server.tree(REPO)
    assert not any(request == f"PUT /{REPO}/storage/{digest}" for request in hub.server.requests for digest in stored)


def test_interrupted_by_the_user(hub: Hub, users: Users) -> None:
    error = wait_for_fault(hub, users, Fault("POST /api/models/.*/commit/"), signal.SIGINT)
    assert error.splitlines()[-1].startswith("push_to_hub.py: error: interrupted; nothing was published.")
    assert len(hub.server.repositories[REPO].commits) == 1


# ------------------------------------------------------------------------------------------------------------ secrets


def test_a_token_in_the_settings_is_not_sent(hub: Hub) -> None:
    for token in (TOKEN, "hf_ofSomebodyElse0123456789abcdef"):
        logs = hub.cwd / token[:8]
        shutil.copytree(hub.runs / "logs", logs)
        config = logs / "sdac" / f"{ENV}_1" / ENV / "started_with" / "config.yml"
        write_yaml(config, {**read_yaml(config), "note": token})
        message = hub.bad("push_to_hub", *PUSH, "-f", str(logs), "--trust-remote-code")  # a copy
        assert "contains a token of the Hub; nothing was sent" in message
        assert hub.server.requests == []


def test_no_file_of_a_client_contains_the_token(hub: Hub) -> None:
    hub.push()
    hub.good("load_from_hub", *AGENT, "-orga", "me")
    for folder in (hub.cwd, hub.home, hub.runs):
        for path in folder.rglob("*"):
            assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


# ---------------------------------------------------------------------------------------------------------- malice


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


def archive_with(content: bytes, **members: bytes) -> bytes:
    """An archive with some members replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, members.pop(name, old.read(name)))
        for name, member in members.items():
            new.writestr(name, member)
    return buffer.getvalue()


def pickled_data(bomb: Bomb) -> bytes:
    value = base64.b64encode(pickle.dumps(bomb)).decode()
    return json.dumps({"policy_class": {":type:": "<class 'type'>", ":serialized:": value}}).encode()


FROM_STRANGER = ["--from-hub", "-orga", "stranger"]


def test_pickle_in_data_is_not_opened(hub: Hub) -> None:
    proof = hub.cwd / "proof"
    bomb = archive_with(hub.published()[f"{NAME}.zip"], data=pickled_data(Bomb(proof)))
    hub.stranger(**{f"{NAME}.zip": bomb, "vec_normalize.pkl": pickle.dumps(Bomb(proof))})
    assert len(scores(hub.good("enjoy", *ACT, *FROM_STRANGER))) == 4  # acts, by the plain description
    hub.good("load_from_hub", *AGENT, "-orga", "stranger")
    assert not proof.exists()


def test_pickles_need_trust(hub: Hub) -> None:
    """An agent without a plain description, as rl-zoo3 publishes it."""
    proof = hub.cwd / "proof"
    with zipfile.ZipFile(io.BytesIO(hub.published()[f"{NAME}.zip"])) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != "sb3_diffusion.json"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {**members, "data": pickled_data(Bomb(proof))}.items():
            archive.writestr(name, content)
    hub.stranger(**{f"{NAME}.zip": buffer.getvalue()})
    out = hub.good("load_from_hub", *AGENT, "-orga", "stranger")
    assert "It has no sb3_diffusion.json, so that it can be loaded by unpickling only, which can run any code in it" in out
    message = hub.bad("enjoy", *ACT, *FROM_STRANGER)
    assert f"{NAME}.zip" in message
    assert "sb3_diffusion.json" in message
    assert not proof.exists()
    trusted = hub.client.run("enjoy", *ACT, *FROM_STRANGER, "--trust-remote-code", cwd=hub.cwd)
    assert "--trust-remote-code: unpickling the member 'data' of " in trusted.out
    assert proof.exists()  # that is what the option means


@pytest.mark.parametrize("name", ["config.yml", "args.yml", "env_kwargs.yml"])
def test_python_in_settings_is_refused(hub: Hub, name: str) -> None:
    proof = hub.cwd / "proof"
    hub.stranger(
        **{name: f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{proof}']]".encode()}
    )
    message = hub.bad("enjoy", *ACT, *FROM_STRANGER)
    assert re.search(rf"{re.escape(name)} is refused, line 1: .*python", message)
    assert not proof.exists()
    assert not (hub.cwd / "hub" / "stranger" / NAME).exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "config.yml",
            "env_wrapper: subprocess.Popen",
            "config.yml is refused: env_wrapper: 'subprocess.Popen' would run code",
        ),
        (
            "config.yml",
            "env_wrapper: [{os.system: {command: ls}}]",
            "config.yml is refused: env_wrapper: 'os.system' would run",
        ),
        ("config.yml", "env_wrapper: [[os.system]]", "config.yml is refused: env_wrapper: ['os.system'] would run code"),
        ("config.yml", "vec_env_wrapper: os.system", "config.yml is refused: vec_env_wrapper: 'os.system' would run code"),
        ("config.yml", "frame_stack: __import__('os')", "config.yml is refused: frame_stack"),
        ("config.yml", "frame_stack: 1000000000", "config.yml is refused: frame_stack: 1000000000 is not a number from 1 to"),
        ("config.yml", "env_wrapper: [{gymnasium.wrappers.ClipAction: {a: /etc}}]", "has an argument that may name a file"),
        ("config.yml", "env_wrapper: {gymnasium.wrappers.ClipAction: {a: 1}}", "its settings do not fit Pendulum-v1"),
        ("config.yml", "env_kwargs: [1]", "config.yml: env_kwargs must be a mapping of names to values, not list"),
        ("env_kwargs.yml", "nonsense: 1", "its settings do not fit Pendulum-v1"),
        ("env_kwargs.yml", "xml_file: /etc/passwd", "env_kwargs.yml is refused: xml_file: '/etc/passwd' may name a file"),
        ("results.json", "[" * 100_000, "results.json is not readable as JSON"),
    ],
)
def test_settings_that_name_code_or_files_are_refused(hub: Hub, name: str, content: str, expected: str) -> None:
    hub.stranger(**{name: content.encode()})
    assert expected in hub.bad("enjoy", *ACT, *FROM_STRANGER)


def test_a_wrapper_of_ones_own_can_be_published(hub: Hub) -> None:
    """Who downloads the agent has to allow it."""
    logs = hub.cwd / "logs"
    shutil.copytree(hub.runs / "logs", logs)
    config = logs / "sdac" / f"{ENV}_1" / ENV / "started_with" / "config.yml"
    write_yaml(config, {**read_yaml(config), "env_wrapper": "gymnasium.wrappers.OrderEnforcing"})
    assert "Obeying settings that need --trust-remote-code: " in hub.good(
        "push_to_hub", *PUSH, "-f", str(logs), "--trust-remote-code"  # a copy
    )
    message = hub.bad("enjoy", *ACT, "--from-hub", "-orga", "me")
    assert "'gymnasium.wrappers.OrderEnforcing' would run code" in message
    out = hub.good("enjoy", *ACT, "--from-hub", "-orga", "me", "--trust-remote-code")
    assert "Obeying settings that need --trust-remote-code: " in out
    assert len(scores(out)) == 4


def test_settings_are_not_evaluated(hub: Hub) -> None:
    """rl-zoo3 evaluates a string under ``normalize`` as Python."""
    proof = hub.cwd / "proof"
    content = f"normalize: \"__import__('pathlib').Path('{proof}').touch()\"\npolicy_kwargs: \"exit()\"\n"
    hub.stranger(**{"config.yml": content.encode()})
    assert len(scores(hub.good("enjoy", *ACT, *FROM_STRANGER))) == 4
    assert not proof.exists()


@pytest.mark.parametrize("name", ["../../escaped.txt", "/tmp/escaped.txt", "..\\escaped.txt", f"{NAME}/../../escaped.txt"])
def test_names_that_leave_the_folder_are_refused(hub: Hub, name: str) -> None:
    hub.stranger(**{name: b"escaped"})
    message = hub.bad("load_from_hub", *AGENT, "-orga", "stranger")
    assert f"is refused: the file name {name!r} leaves the folder" in message
    assert not list(hub.cwd.iterdir())


@pytest.mark.parametrize("member", ["../escaped", "/tmp/escaped", "a/../../escaped"])
@pytest.mark.parametrize("archive", [f"{NAME}.zip", "train_eval_metrics.zip"])
def test_members_that_leave_the_folder_are_refused(hub: Hub, archive: str, member: str) -> None:
    hub.stranger(**{archive: archive_with(hub.published()[archive], **{member: b"escaped"})})
    message = hub.bad("load_from_hub", *AGENT, "-orga", "stranger")
    assert archive in message
    assert member in message
    assert not (hub.cwd / "hub" / "stranger" / NAME).exists()


@pytest.mark.parametrize("archive", [f"{NAME}.zip", "train_eval_metrics.zip"])
def test_bombs_are_refused(hub: Hub, archive: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb, bomb.open(
        "big.pth", "w", force_zip64=True
    ) as member:
        for _ in range(60):
            member.write(bytes(1 << 20))
    content = archive_with(hub.published()[archive])
    with zipfile.ZipFile(io.BytesIO(content), "a") as probe:
        assert probe.namelist()
    hub.stranger(**{archive: buffer.getvalue()})
    message = hub.bad("load_from_hub", *AGENT, "-orga", "stranger")
    assert archive in message
    assert not (hub.cwd / "hub" / "stranger" / NAME).exists()


def test_files_that_are_too_large_are_not_downloaded(hub: Hub) -> None:
    hub.stranger(**{"results.json": b" " * 1_000_001})
    message = hub.bad("load_from_hub", *AGENT, "-orga", "stranger")
    assert "results.json has 1000001 bytes, more than 1000000" in message
    assert not any("/resolve/" in request for request in hub.server.requests if "stranger" in request)


def test_only_files_of_the_layout_are_downloaded(hub: Hub) -> None:
    hub.stranger(**{"setup.py": b"raise SystemExit", "sub__config.yml": b"a: 1", ".cache": b""})
    hub.good("load_from_hub", *AGENT, "-orga", "stranger")
    folder = hub.cwd / "hub" / "stranger" / NAME
    assert {path.name for path in folder.iterdir()} == LAYOUT | {"hub.json"}
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_wrong_content_is_refused(hub: Hub) -> None:
    hub.stranger()
    digest = hub.server.repositories[f"stranger/{NAME}"].commits[-1].files[f"{NAME}.zip"]
    assert isinstance(digest, str)
    hub.server.large[digest] = archive_with(hub.server.large[digest], data=b"{}")
    message = hub.bad("load_from_hub", *AGENT, "-orga", "stranger")
    assert f"{NAME}.zip" in message
    assert not (hub.cwd / "hub" / "stranger" / NAME).exists()


def test_a_folder_of_somebody_else_is_not_replaced(hub: Hub) -> None:
    hub.published()
    folder = hub.cwd / "hub" / "me" / NAME
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work", encoding="utf-8")
    message = hub.bad("load_from_hub", *AGENT, "-orga", "me")
    assert "contains thesis.tex, which is not part of an agent" in message
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("organization", ["../up", "a/b", "", "-x", "a b", "a\nb"])
def test_names_of_repositories_are_checked(hub: Hub, organization: str) -> None:
    message = hub.bad("load_from_hub", *AGENT, f"-orga={organization}" if organization else "--organization=")
    assert "cannot be a name on the Hub" in message
    assert hub.server.requests == []
