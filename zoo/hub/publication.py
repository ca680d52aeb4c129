"""How a training becomes the folder of an agent that can be published: weights, settings, scores, page and video."""

import datetime
import json
import re
import tempfile
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
from sb3_diffusion.data.stored.tasks import dataset_of
from sb3_diffusion.printable import printable
from sb3_diffusion.tensor_names import is_tensor_env

from ..provenance import cpu_name, git_commit, package_versions
from ..training.runs.protocols import Protocol, of_deterministic_actions
from ..training.runs.saved_agents import SavedAgent
from ..training.runs.started_with import original
from ..training.runs.text_files import read_yaml, saved_env_kwargs, write_yaml
from .model_card import model_card
from .published import PublishedAgent, agent_name
from .record import record
from .repository import MB, SETTINGS, replace_folder, zipped

# What of the command line of a training is published: that which decides its result. Paths, databases, trackers and the like
# belong to the machine.
PUBLISHED_ARGUMENTS = (
    "algo",
    "env",
    "seed",
    "n_timesteps",
    "n_envs",
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
    "pretrain_updates",
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
    :param n_eval_episodes: Episodes of each evaluation
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
        how: dict[str, Any] = {"n_eval_episodes": n_eval_episodes, "n_envs": n_envs, "seed": seed, "device": device}
        evaluations = [evaluate(agent, **protocol._asdict(), **how) for protocol in protocols_of(agent)]
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


def protocols_of(agent: PublishedAgent) -> list[Protocol]:
    """
    :param agent: An agent
    :return: How it is to be scored: its deterministic actions first, with its own noise and with the other one
    """
    env = agent.make_env()
    model = agent.load(env, device="cpu")
    env.close()
    return [*of_deterministic_actions(model), Protocol(False)]


def evaluate(
    agent: PublishedAgent,
    *,
    deterministic: bool,
    noise: str | None = None,
    n_eval_episodes: int,
    n_envs: int = 1,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """
    Score an agent. The same seed gives the same numbers on the same machine.

    :param agent: The agent
    :param deterministic: Kind of its actions
    :param noise: Noise of deterministic actions, ``None`` for the agent's own
    :param n_eval_episodes: Number of episodes
    :param n_envs: Number of environments
    :param seed: Seed
    :param device: PyTorch device
    :return: Plain numbers, under the names of rl-zoo3 where it has them
    """
    env, protocol = agent.make_env(n_envs=n_envs, seed=seed), Protocol(deterministic, noise)
    model = agent.load(env, device=device, seed=seed)
    set_random_seed(seed)
    with protocol.followed_by(model):
        returns, lengths = evaluate_policy(
            model, env, n_eval_episodes, deterministic=protocol.deterministic, return_episode_rewards=True, warn=False
        )
    env.close()
    return {
        "mean_reward": float(np.mean(returns)),
        "std_reward": float(np.std(returns)),
        "is_deterministic": protocol.deterministic,
        **({} if protocol.noise is None else {"evaluation_noise": protocol.noise}),
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
        "versions": versions(run.env_id),
        "evaluated_on": cpu_name(),
        **({"commit": f"commit {commit}, when the agent was evaluated"} if commit else {}),
    }


def versions(env_id: str) -> dict[str, str]:
    """
    :param env_id: An environment
    :return: Releases on which a return in it depends
    """
    simulated = not is_tensor_env(env_id) and (
        "mujoco" in str(gym.spec(env_id).entry_point) or env_id.startswith("dm_control/")
    )
    return {name: release for name, release in package_versions().items() if simulated or name not in SIMULATORS}
