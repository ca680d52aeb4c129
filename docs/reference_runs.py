"""
The reference implementation on a grid of ours: ``python docs/reference_runs.py CHECKOUT --grid docs/data/benchmark/NAME.yml``.

Needs an interpreter that has what the reference needs (jax, flax, distrax, omegaconf, scikit-learn) and Gymnasium with MuJoCo,
and nothing of ours; ``CHECKOUT`` is a clone of https://github.com/typoverflow/flow-rl. Its agents, replay buffer and settings
are used as they are; the loop around them follows its own trainer, with the budget, evaluations and changed settings of the
grid. Rows, one for every evaluation, go to ``reference.csv`` beside the results of the grid; trainings that are there are not
done again.

XLA takes all processors, whatever ``OMP_NUM_THREADS`` says. With ``XLA_FLAGS="--xla_cpu_multi_thread_eigen=false"`` it takes
little more than the one that our runs have. It needs two, though: with one (``taskset``, a single thread of XLA) DACER, whose
entropy is estimated by a callback, waits for ever.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from rows import Rows

KEY = ("algorithm", "environment", "seed", "timesteps")
FIELDS = ("mean_return", "std_return", "n_episodes", "cpu_seconds", "commit", "versions")
AGENTS = {"sac": "SACAgent", "qsm": "QSMAgent", "dacer": "DACERAgent", "sdac": "SDACAgent", "dpmd": "DPMDAgent"}
NAMES = {"sdac": {"n_particles": "num_reverse_samples"}, "dpmd": {"n_particles": "num_particles"}}
"""Algorithm -> our name of a setting -> the reference's."""
PACKAGES = ("jax", "flax", "gymnasium", "mujoco")


class Protocol:
    """
    What a grid says, as the reference understands it.

    :param path: The description of the grid
    """

    def __init__(self, path: Path):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        self.budget: int = content["budget"]
        self.every: int = content["evaluation"]["every"]
        self.episodes: int = content["evaluation"]["episodes"]
        self.environments: list[str] = content["environments"]
        self.seeds: list[int] = content["seeds"]
        self.algorithms = [algo for algo in content["algorithms"] if algo in AGENTS]
        self._own = {algo: content["algorithms"][algo] or {} for algo in self.algorithms}
        self._all = content.get("settings", {})

    def changes(self, algo: str) -> tuple[int, dict[str, Any]]:
        """
        :param algo: An algorithm
        :return: Random steps before the first update, and what changes about the algorithm's settings
        :raises ValueError: If the grid changes what this command cannot
        """
        changes = {name: change["value"] for name, change in (self._all | self._own[algo]).items()}
        random_steps = int(changes.pop("learning_starts", 5_000))
        if unknown := set(changes) - set(NAMES.get(algo, {})):
            raise ValueError(f"{algo}: {', '.join(sorted(unknown))} has no name in the reference yet; add it to NAMES")
        return random_steps, {NAMES[algo][name]: value for name, value in changes.items()}


def settings_of(checkout: Path, algo: str, env: str, changes: dict[str, Any]) -> Any:
    """
    :param checkout: The reference
    :param algo: An algorithm
    :param env: Id of the environment, by which some settings go
    :param changes: What the grid changes
    :return: The reference's own settings with these changes
    """
    from omegaconf import OmegaConf

    folder = checkout / "examples" / "online" / "config" / "mujoco"
    parts = [OmegaConf.load(folder / "config.yaml"), OmegaConf.load(folder / "algo" / f"{algo}.yaml")]
    settings = OmegaConf.merge(*parts, {"task": env, "algo": changes})
    OmegaConf.resolve(settings.algo)
    return settings


def make_env(env: str) -> gym.Env[Any, Any]:
    """As the reference's trainer makes it: actions between -1 and 1."""
    return gym.wrappers.RescaleAction(gym.make(env), min_action=-1.0, max_action=1.0)


def evaluate(agent: Any, envs: list[gym.Env[Any, Any]], seed: int) -> np.ndarray:
    """
    :param agent: An agent of the reference
    :param envs: One environment for each episode
    :param seed: Of the first of them
    :return: Returns of the episodes, with the actions that the reference takes when evaluating
    """
    states = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
    returns, running = np.zeros(len(envs)), np.ones(len(envs), bool)
    while running.any():
        actions = np.asarray(agent.sample_actions(states, deterministic=True, num_samples=1)[0])
        for i in np.flatnonzero(running):
            states[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
            returns[i] += float(reward)
            running[i] = not (terminated or truncated)
    return returns


def train(checkout: Path, protocol: Protocol, algo: str, env_id: str, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """
    :param checkout: The reference
    :param protocol: The grid
    :param algo: An algorithm
    :param env_id: Id of the environment
    :param seed: Seed of everything
    :return: Steps and returns of every evaluation, those of the trained agent at the end
    """
    import flowrl.agent.online as agents
    from flowrl.dataset.buffer.state import ReplayBuffer

    np.random.seed(seed)  # the replay buffer draws from there
    random_steps, changes = protocol.changes(algo)
    settings = settings_of(checkout, algo, env_id, changes)
    env, tests = make_env(env_id), [make_env(env_id) for _ in range(protocol.episodes)]
    env.action_space.seed(seed)
    sizes = {"obs_dim": env.observation_space.shape[0], "action_dim": env.action_space.shape[0]}  # type: ignore[index]
    agent = getattr(agents, AGENTS[algo])(obs_dim=sizes["obs_dim"], act_dim=sizes["action_dim"], cfg=settings.algo, seed=seed)
    buffer = ReplayBuffer(**sizes, max_size=protocol.budget)
    state, _ = env.reset(seed=seed)
    for step in range(protocol.budget):
        if step > random_steps and step % protocol.every == 0:
            yield step, evaluate(agent, tests, 1_000_000 + 1_000 * seed + step)
        if step < random_steps:
            action = env.action_space.sample()
        else:
            action = np.asarray(agent.sample_actions(state[None], deterministic=False, num_samples=1)[0])[0]
        following, reward, terminated, truncated, _ = env.step(action)
        buffer.add(state, action, following, reward, terminated)
        state = env.reset()[0] if terminated or truncated else following
        if step >= random_steps:
            batch, _ = buffer.sample(batch_size=settings.batch_size)
            agent.train_step(batch, step=step)
    yield protocol.budget, evaluate(agent, tests, 1_000_000 + 1_000 * seed + protocol.budget)


def main() -> None:
    """Train what has no rows yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="clone of the reference implementation")
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--algos", nargs="+", choices=list(AGENTS))
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--commit", help="commit of the clone (default: what git says)")
    parser.add_argument("--output", type=Path, help="csv file (default: reference.csv in the grid's folder of results)")
    args = parser.parse_args()
    sys.path.insert(0, str(args.checkout))
    git = ["git", "-C", str(args.checkout), "rev-parse", "HEAD"]
    commit = args.commit or subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    versions = " ".join(f"{package} {version(package)}" for package in PACKAGES)
    protocol = Protocol(args.grid)
    results = Rows(args.output or args.grid.with_suffix("") / "reference.csv", KEY, FIELDS)
    for seed in args.seeds or protocol.seeds:
        for env in protocol.environments:
            for algo in args.algos or protocol.algorithms:
                key = {"algorithm": algo, "environment": env, "seed": seed}
                if {**key, "timesteps": protocol.budget} in results:
                    continue
                begin, rows = time.process_time(), []
                for steps, returns in train(args.checkout, protocol, algo, env, seed):
                    measured = {"mean_return": float(returns.mean()), "std_return": float(returns.std())}
                    spent = round(time.process_time() - begin, 1)
                    about = {"n_episodes": len(returns), "cpu_seconds": spent, "commit": commit[:7], "versions": versions}
                    rows.append({**key, "timesteps": steps, **measured, **about})
                    print(rows[-1], flush=True)
                results.put(*rows)


if __name__ == "__main__":
    main()
