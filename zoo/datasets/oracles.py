"""
Data of OGBench's tasks, made anew with the oracles in its package, with the settings of its public commands.

A cube's ``noisy`` data come from a Markov oracle whose noise has another level in each episode, with one action in ten
random; its ``play`` data from an oracle that follows plans, with smooth noise. A point in a maze goes straight to the next
cell of the shortest path. A new target is drawn whenever one is reached.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from sb3_diffusion.data.stored.catalogue import KnownDataset
from sb3_diffusion.data.stored.readers.files import require
from sb3_diffusion.files import put_in_place

N_STEPS = 1001
"""Rows of an episode, the last of which is a state without a step."""

N_EPISODES = {"cube-single-noisy": 40, "cube-single-play": 40, "pointmaze-medium-navigate": 100}
"""Data set -> number of episodes, unless told otherwise; OGBench's own are 25 (cube) and 10 times as large."""

BLOCK = 5
"""Episodes with a common seed, the next one for the next block."""

VALIDATION_SEED = 1000
CUBE_NOISE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
TASKS = (1, 2, 3, 4, 5)
Record = Callable[[np.ndarray, np.ndarray, bool, np.ndarray], None]


def make(known: KnownDataset, target: Path, *, n_episodes: int | None = None) -> list[Path]:
    """
    :param known: Which data set
    :param target: The file; that for validation lies beside it, with a tenth of the episodes
    :param n_episodes: Number of episodes
    :return: Both files
    """
    require("ogbench", "ogbench", f"Making {known.name}")
    name = Path(known.file).stem.removesuffix("-val").removesuffix("-v0")
    n_episodes = N_EPISODES[name] if n_episodes is None else n_episodes
    target = target.with_name(target.name.replace("-val.npz", ".npz"))
    plan = {
        target.with_name(f"{target.stem}-val.npz"): (max(1, n_episodes // 10), VALIDATION_SEED),
        target: (n_episodes, 0),
    }
    for path, (count, seed) in plan.items():
        _write(path, collect(name, count, seed, path.name))
    return list(plan)


def collect(name: str, n_episodes: int, seed: int, title: str) -> dict[str, np.ndarray]:
    """
    :param name: Name of the data without version
    :param n_episodes: Number of episodes
    :param seed: Seed of the first block of episodes
    :param title: Name of the bar
    :return: The columns of the file
    """
    env_name, _, kind = name.rpartition("-")
    blocks = []
    with tqdm(total=n_episodes * N_STEPS, desc=title, unit="step") as bar:
        for number, first in enumerate(range(0, n_episodes, BLOCK)):
            blocks.append(_block(env_name, kind, min(BLOCK, n_episodes - first), seed + number, bar))
    data = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    for task in TASKS:
        data |= rewards(f"{env_name}-singletask-task{task}-v0", data, task)
    return data


def rewards(env_id: str, data: dict[str, np.ndarray], task: int) -> dict[str, np.ndarray]:
    """
    :param env_id: Environment of the task
    :param data: Columns of the file
    :param task: Number of the task
    :return: Rewards of the task, and 0 where it is solved, as OGBench computes them
    """
    relabel = require("ogbench.relabel_utils", "ogbench", "").relabel_dataset
    env, copy = gym.make(env_id), dict(data)
    try:
        relabel(env_id, env, copy)
    finally:
        env.close()
    return {f"rewards_task{task}": copy["rewards"], f"masks_task{task}": copy["masks"]}


def _block(env_name: str, kind: str, n_episodes: int, seed: int, bar: Any) -> dict[str, np.ndarray]:
    np.random.seed(seed)  # what the oracles draw from
    rows: dict[str, list[np.ndarray]] = {"observations": [], "actions": [], "terminals": [], "qpos": []}

    def record(*values: Any) -> None:
        for column, value in zip(rows.values(), values, strict=True):
            column.append(np.array(value))
        bar.update()

    more: dict[str, Any] = {} if env_name.startswith("pointmaze") else {"mode": "data_collection"}
    env = gym.make(f"{env_name}-v0", terminate_at_goal=False, max_episode_steps=N_STEPS, **more)
    try:
        env.reset(seed=seed)
        episode = _episodes(env, kind)
        for _ in range(n_episodes):
            episode(record)
    finally:
        env.close()
    return {key: np.array(values, bool if key == "terminals" else np.float32) for key, values in rows.items()}


def _episodes(env: Any, kind: str) -> Callable[[Record], None]:
    """What records an episode."""
    if kind == "navigate":
        return lambda record: _navigate(env, record)
    if kind == "noisy":
        markov = require("ogbench.manipspace.oracles.markov.cube_markov", "ogbench", "").CubeMarkovOracle
        quick = markov(env=env, min_norm=0.4)
        return lambda record: _move_cubes(env, quick, record, noisy=True)
    plan = require("ogbench.manipspace.oracles.plan.cube_plan", "ogbench", "").CubePlanOracle
    smooth = plan(env=env, noise=0.1, noise_smoothing=0.5)
    return lambda record: _move_cubes(env, smooth, record, noisy=False)


def _move_cubes(env: Any, oracle: Any, record: Record, *, noisy: bool) -> None:
    observation, info = env.reset()
    level = np.random.uniform(0.0, 0.1)
    oracle.reset(observation, info)
    over = False
    while not over:
        if noisy and np.random.rand() < 0.1:
            # not action_space.sample(): these tasks make a new, unseeded space whenever they are asked for it
            action = np.random.uniform(-1.0, 1.0, len(CUBE_NOISE))
        else:
            action = np.array(oracle.select_action(observation, info))
            action = action + np.random.normal(0.0, level * CUBE_NOISE) if noisy else action
        action = np.clip(action, -1.0, 1.0)
        after, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
        if oracle.done:
            oracle.reset(*env.unwrapped.set_new_target(p_stack=0.0))
        record(observation, action, over, info["prev_qpos"])
        observation = after


def _navigate(env: Any, record: Record) -> None:
    maze = env.unwrapped
    starts, goals = _cells(maze.maze_map)
    task = {"init_ij": _choose(starts), "goal_ij": _choose(goals)}
    observation, _ = env.reset(options={"task_info": task})
    over = False
    while not over:
        place = maze.get_xy()
        way = maze.get_oracle_subgoal(place, maze.cur_goal_xy)[0] - place
        action = np.clip(way / (np.linalg.norm(way) + 1e-6) + np.random.normal(0.0, 0.5, 2), -1.0, 1.0)
        after, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
        if info["success"]:
            maze.set_goal(_choose(goals))
        record(observation, action, over, info["prev_qpos"])
        observation = after


def _cells(maze: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Free cells, and those of them that are not within a straight corridor."""
    free = [(int(i), int(j)) for i, j in np.argwhere(maze == 0)]

    def straight(i: int, j: int) -> bool:
        vertical, horizontal = maze[[i - 1, i + 1], j] == 1, maze[i, [j - 1, j + 1]] == 1
        return bool((not vertical.any() and horizontal.all()) or (not horizontal.any() and vertical.all()))

    return free, [cell for cell in free if not straight(*cell)]


def _choose(cells: list[tuple[int, int]]) -> tuple[int, int]:
    return cells[np.random.randint(len(cells))]


def _write(path: Path, data: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, **data)  # type: ignore[arg-type]
        put_in_place(part, path)
    finally:
        part.unlink(missing_ok=True)
