"""The folder of an agent that can be published: what is in it, how a run becomes one, how one is checked."""

import datetime
import io
import json
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import set_random_seed

from sb3_diffusion import save_agent
from sb3_diffusion.checkpoints.archives import open_archive
from sb3_diffusion.checkpoints.tagged_json import parse_json
from sb3_diffusion.data.stored.tasks import dataset_of
from sb3_diffusion.printable import printable

from ..provenance import cpu_name, git_commit, package_versions
from ..training.runs.saved_agents import SavedAgent
from ..training.runs.started_with import original
from ..training.runs.text_files import read_yaml, saved_env_kwargs, write_yaml
from .model_card import model_card
from .published import PublishedAgent, agent_name
from .record import record

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
# What of the command line of a training is published: that which decides its result. Paths, databases, trackers and the like
# belong to the machine.
PUBLISHED_ARGUMENTS = (
    "algo",
    "env",
    "seed",
    "n_timesteps",
    "hyperparams",
    "env_kwargs",
    "eval_env_kwargs",
    "eval_freq",
    "eval_episodes",
    "n_eval_envs",
    "vec_env",
    "device",
    "num_threads",
    "truncate_last_trajectory",
    "extended_from",
    "dataset",
    "online_steps",
)
SIMULATORS = ("mujoco", "dm-control", "shimmy")


def write_repository(
    run: SavedAgent,
    target: Path,
    *,
    n_eval_episodes: int = 10,
    n_envs: int = 1,
    seed: int = 0,
    device: str = "auto",
    video: bool = True,
    video_steps: int = 1000,
    video_bytes: int = 2 * MB,
    repo_id: str | None = None,
) -> Path:
    """
    Make the folder that is published. The agent that is evaluated and recorded is the one in that folder, loaded as a stranger
    would load it.

    :param run: The training
    :param target: Folder in which the agent's folder is made
    :param n_eval_episodes: Episodes of each of the two evaluations
    :param n_envs: Environments of the evaluations
    :param seed: Seed of the evaluations
    :param device: PyTorch device
    :param video: Whether to record a video; without a renderer the folder has none
    :param video_steps: Length of the video
    :param video_bytes: Largest size of the video
    :param repo_id: Repository on the Hub, for the commands on the page
    :return: The agent's folder
    """
    name = agent_name(run.algo, run.env_id)
    hyperparams, args = _published_settings(run)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=f".{name}.") as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        model, training = _load_run(run, device)
        training |= {
            "seed": args.get("seed", model.seed),
            **{key: hyperparams[key] for key in ("dataset",) if key in hyperparams},
        }
        _compress(save_agent(model, new / f"{name}.zip", optimizer_state=False))
        env_kwargs = saved_env_kwargs(original(run.settings), dict(hyperparams)) | run.env_kwargs
        for file, content in zip(SETTINGS, (hyperparams, args, env_kwargs), strict=True):
            write_yaml(new / file, content)
        (new / "train_eval_metrics.zip").write_bytes(zipped(_metrics(run.folder)))

        # from here on the agent is what has been written
        agent = PublishedAgent(new, run.env_id, run.algo, trust=True)  # settings of the user's own
        evaluations = [
            evaluate(agent, deterministic=kind, n_eval_episodes=n_eval_episodes, n_envs=n_envs, seed=seed, device=device)
            for kind in (True, False)
        ]
        results = _results(run, evaluations, {key: value for key, value in training.items() if value is not None})
        (new / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (new / "README.md").write_text(model_card(results, hyperparams, args, repo_id), encoding="utf-8")
        if video:
            problem = record(new, run.env_id, new / "replay.mp4", steps=video_steps, max_bytes=video_bytes, seed=seed)
            if problem:
                print(f"No video: {printable(problem)}")
        replace_folder(new, target / name, name)
    return target / name


def _published_settings(run: SavedAgent) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hyperparameters, and the arguments of the training that decide its result."""
    settings = original(run.settings)  # those files may have been edited since
    config = settings / "config.yml"
    if not config.is_file():
        raise ValueError(f"{config} does not exist: {run.folder} is not the folder of a training.")
    arguments = settings / "args.yml"
    saved = read_yaml(arguments) if arguments.is_file() else {}
    args = {key: saved[key] for key in PUBLISHED_ARGUMENTS if key in saved}
    if args.get("dataset") and dataset_of(args["dataset"]) is None:
        args["dataset"] = Path(args["dataset"]).name  # where it lies is nobody's business
    return read_yaml(config), {**args, "algo": run.algo, "env": run.env_id}


def _load_run(run: SavedAgent, device: str) -> tuple[BaseAlgorithm, dict[str, Any]]:
    """The agent with its normalisation but without its memory."""
    data, _, _ = load_from_zip_file(run.archive, device="cpu")
    assert data is not None
    model = run.load(run.make_env(), device=device, attach=True)
    for key in ("buffer_size", "optimize_memory_usage"):  # what is published says how the agent was trained
        if key in data:
            setattr(model, key, data[key])
    model.tensorboard_log = None  # a path of this machine
    return model, _training_facts(run, model)


def _compress(path: Path) -> None:
    """Write an archive again, smaller and without the time of day."""
    with open_archive(path) as archive:
        members = {member: archive.read(member) for member in archive.sizes}
    path.write_bytes(zipped(members))


def _training_facts(run: SavedAgent, model: BaseAlgorithm) -> dict[str, Any]:
    """Budget, machine and versions of the training, as far as its files tell."""
    facts: dict[str, Any] = {
        "timesteps": int(model.num_timesteps),
        "unit": getattr(model, "budget_unit", "environment steps").replace("_", " "),
        **_data_facts(model),
        "agent": "best of the evaluations" if run.archive.name == "best_model.zip" else None,
    }
    times = [line.split(",")[2] for path in run.folder.glob("*.monitor.csv") for line in path.read_text().splitlines()[2:]]
    if times:
        facts["wall_time_s"] = max(map(float, times))
    with open_archive(run.archive) as archive:
        if "system_info.txt" in archive.sizes:
            lines = archive.read("system_info.txt").decode(errors="replace").splitlines()
            info = dict(re.findall(r"^- ([^:]{1,40}): (.{1,200})$", "\n".join(lines), flags=re.MULTILINE))
            system = info.pop("OS", "unknown").partition("-")[0]  # the rest names a kernel, which decides nothing
            facts["machine"] = f"{system}, GPU enabled: {info.pop('GPU Enabled', 'unknown')}"
            facts["versions"] = {_package(key): value for key, value in info.items()}
    return facts


def _data_facts(model: Any) -> dict[str, Any]:
    """Which data the agent learned from; the data themselves are never published."""
    identity = getattr(model, "dataset_identity", None)
    if not identity:
        return {}
    known = dataset_of(identity["name"])
    scale = None if known is None or known.reference is None else known.reference._asdict()
    return {"offline_updates": int(model._n_offline_updates), "dataset": identity, "scale": scale}


def _package(title: str) -> str:
    """Name of a package from its title in the system information of Stable-Baselines3."""
    return {"pytorch": "torch"}.get(title.lower(), title.lower())


def _metrics(folder: Path) -> dict[str, bytes]:
    files = [folder / "evaluations.npz", *sorted(folder.glob("*.monitor.csv"))]
    return {path.name: path.read_bytes() for path in files if path.is_file()}


def evaluate(
    agent: PublishedAgent, *, deterministic: bool, n_eval_episodes: int, n_envs: int = 1, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """
    Score an agent. The same seed gives the same numbers on the same machine.

    :param agent: The agent
    :param deterministic: Kind of its actions
    :param n_eval_episodes: Number of episodes
    :param n_envs: Number of environments
    :param seed: Seed
    :param device: PyTorch device
    :return: Plain numbers, under the names of rl-zoo3 where it has them
    """
    env = agent.make_env(n_envs=n_envs, seed=seed)
    model = agent.load(env, device=device, seed=seed)
    set_random_seed(seed)
    returns, lengths = evaluate_policy(
        model, env, n_eval_episodes, deterministic=deterministic, return_episode_rewards=True, warn=False
    )
    env.close()
    return {
        "mean_reward": float(np.mean(returns)),
        "std_reward": float(np.std(returns)),
        "is_deterministic": deterministic,
        "n_eval_episodes": n_eval_episodes,
        "mean_length": float(np.mean(lengths)),
        "seed": seed,
        "n_envs": n_envs,
        "returns": [float(value) for value in np.ravel(returns)],
    }


def _results(run: SavedAgent, evaluations: list[dict[str, Any]], training: dict[str, Any]) -> dict[str, Any]:
    """Content of ``results.json``: what rl-zoo3 writes there, and more."""
    first = evaluations[0]
    names = ("mean_reward", "std_reward", "is_deterministic", "n_eval_episodes")
    commit = git_commit()
    return {
        **{name: first[name] for name in names},
        "eval_datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "algorithm": run.algo,
        "class": ALGOS[run.algo].__name__,
        "env_id": run.env_id,
        "evaluations": evaluations,
        "training": training,
        "versions": _versions(run.env_id),
        "evaluated_on": cpu_name(),
        **({"commit": f"commit {commit}, when the agent was evaluated"} if commit else {}),
    }


def _versions(env_id: str) -> dict[str, str]:
    simulated = "mujoco" in str(gym.spec(env_id).entry_point) or env_id.startswith("dm_control/")
    return {name: release for name, release in package_versions().items() if simulated or name not in SIMULATORS}


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
