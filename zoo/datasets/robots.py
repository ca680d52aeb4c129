"""Data of MuJoCo's robots, driven by RL Zoo's published agents: ``rlzoo/<robot>/<kind>-v0``."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from sb3_diffusion.data.stored.catalogue import ROBOTS, ZOO_KINDS, KnownDataset
from sb3_diffusion.data.stored.readers.files import require
from sb3_diffusion.files import put_in_place

from .published import ALGOS, Agent, Random, Switching, fetch, read_statistics

N_ROWS = 100_000
MIDDLING = {"Hopper": "sac", "HalfCheetah": "ppo", "Walker2d": "trpo"}
BEST = {"Hopper": "trpo", "HalfCheetah": "sac", "Walker2d": "sac"}
"""Robot -> agent, as they do in today's version of the task with their noise."""

SHARE = 0.18
"""Share of each trained agent in the mixed data; the rest is random."""

COLUMNS = ("observations", "actions", "rewards", "terminals", "timeouts", "infos/policy")
Episode = dict[str, np.ndarray]


def recipe(robot: str, kind: str, n_rows: int) -> dict[str, int]:
    """
    :param robot: Robot
    :param kind: Kind of data
    :param n_rows: Number of transitions
    :return: Who acts, and for how many transitions at least
    """
    if kind == "single":
        return {MIDDLING[robot]: n_rows}
    if kind == "expert-mixed":
        return {MIDDLING[robot]: n_rows // 2, BEST[robot]: n_rows // 2}
    if kind == "switching":
        return {"switching": n_rows // 2}
    share = int(SHARE * n_rows)
    return {algo: n_rows - (len(ALGOS) - 1) * share if algo == "random" else share for algo in ALGOS}


def make(known: KnownDataset, target: Path, *, n_rows: int = N_ROWS, agents: Path | None = None) -> Path:
    """
    :param known: Which data set
    :param target: The file
    :param n_rows: Number of transitions; episodes are whole, so that there will be a few more
    :param agents: Folder of the agents; by default they come from the Hub
    :return: The file
    """
    _, name, version = known.name.split("/")
    kind = version.removesuffix("-v0")
    robot = ROBOTS[name][0].partition("-")[0]
    env, wanted = gym.make(f"{robot}-v5"), recipe(robot, kind, n_rows)
    actors = {algo: policy(algo, robot, agents, env.action_space) for algo in wanted}
    episodes: list[Episode] = []
    with tqdm(total=sum(wanted.values()), desc=known.name, unit="step") as bar:
        for algo, n_wanted in wanted.items():
            stream = roll_out(env, actors[algo], _seed(name, kind, algo))
            while n_wanted > 0:
                episode = next(stream)
                n_wanted -= len(episode["rewards"])
                episodes.append(episode)
                bar.update(len(episode["rewards"]))
    env.close()
    if kind == "mixed":
        episodes = [episodes[index] for index in np.random.default_rng(0).permutation(len(episodes))]
    return write(target, episodes, f"{robot}-v5", known.name)


def _seed(name: str, kind: str, algo: str) -> int:
    robots = list(ROBOTS)
    return 1000 * (1 + robots.index(name)) + 100 * ZOO_KINDS.index(kind) + (*ALGOS, "switching").index(algo)


def policy(algo: str, robot: str, folder: Path | None, space: Any) -> Agent | Random | Switching:
    """
    :param algo: Who acts
    :param robot: Robot
    :param folder: Folder of the agents, ``None`` for the Hub
    :param space: Action space
    """
    if algo == "random":
        return Random(space.low, space.high)
    if algo == "switching":
        return Switching([policy(other, robot, folder, space) for other in ALGOS if other != "random"])  # type: ignore[misc]
    archive, statistics = fetch(algo, robot, folder)
    return Agent(algo, robot, archive, None if statistics is None else read_statistics(statistics))


def roll_out(env: gym.Env, actor: Agent | Random | Switching, seed: int) -> Iterator[Episode]:
    """
    Whole episodes, without end.

    :param env: Task
    :param actor: Who acts
    :param seed: Seed of the task and of the noise
    """
    generator, space = np.random.default_rng(seed), _box(env)
    begin: int | None = seed
    while True:
        observation, _ = env.reset(seed=begin)
        rows: list[tuple[Any, ...]] = []
        begin, over = None, False
        while not over:
            action = actor.act(observation, len(rows), generator)
            action = np.clip(action, space.low, space.high).astype(np.float32)
            after, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, reward, terminated, truncated and not terminated, actor.number))
            observation, over = after, terminated or truncated
        yield dict(zip(COLUMNS, map(np.array, zip(*rows, strict=True)), strict=True))


def _box(env: gym.Env) -> spaces.Box:
    assert isinstance(env.action_space, spaces.Box)
    return env.action_space


def write(target: Path, episodes: list[Episode], env_id: str, name: str) -> Path:
    """
    :param target: The file
    :param episodes: What was recorded
    :param env_id: Task
    :param name: Name of the data set
    :return: The file
    """
    h5py = require("h5py", "offline", "Writing HDF5 files")
    types = {"terminals": bool, "timeouts": bool, "infos/policy": np.int8}
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with h5py.File(part, "w") as file:
            for column in COLUMNS:
                values = np.concatenate([episode[column] for episode in episodes]).astype(types.get(column, np.float32))
                file.create_dataset(column, data=values, compression="gzip", compression_opts=9, shuffle=True)
            file["metadata/name"] = name
            file["metadata/env_id"] = env_id
            file["metadata/policies"] = json.dumps(dict(enumerate(ALGOS)))
            file["metadata/source"] = "agents of DLR-RM/rl-trained-agents (MIT), actions as they explored in training"
        put_in_place(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target
