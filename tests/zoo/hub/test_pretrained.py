"""The agents that come with the clone."""

import json
from pathlib import Path

import pytest

from sb3_diffusion.taxonomy import available_methods
from zoo.hub.publication import evaluate, protocols_of
from zoo.hub.published import PRETRAINED, PublishedAgent
from zoo.hub.repository import check_folder
from zoo.training.options.registry import check_environment
from zoo.training.runs.protocols import protocol_of

AGENTS = sorted(path.parent for path in PRETRAINED.glob("*/results.json"))
MAX_BYTES, MAX_BYTES_OF_ALL = 2_000_000, 15_000_000
SMALL_TASKS, MAX_BYTES_OF_SMALL = ("Pendulum-v1", "InvertedPendulum-v5", "pendulum-medium-v0"), 250_000
"""A clone brings all agents: of every method, on small tasks, which small networks solve."""


@pytest.mark.parametrize("folder", AGENTS, ids=[folder.name for folder in AGENTS])
def test_acts_as_its_card_says(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert folder.name == f"{results['algorithm']}-{results['env_id']}"
    assert all(path.stat().st_size < MAX_BYTES for path in check_folder(folder, folder.name))
    check_environment(results["env_id"])
    agent = PublishedAgent(folder, results["env_id"])
    scores = {protocol_of(scores): scores for scores in results["evaluations"]}
    protocols = protocols_of(agent)
    assert list(scores) == protocols, "python zoo/hub/add_scores.py adds what is missing"
    reported = scores[protocols[0]]
    n_envs = reported["n_envs"]
    again = evaluate(agent, deterministic=True, n_eval_episodes=n_envs, n_envs=n_envs, seed=reported["seed"])
    # the first episodes of all environments; other processors round differently
    assert sorted(again["returns"])[n_envs // 2] == pytest.approx(sorted(reported["returns"][:n_envs])[n_envs // 2], rel=0.05)


def test_the_promised_agents_are_there() -> None:
    names = {folder.name for folder in AGENTS}
    tasks = {"offline": ("pendulum-medium-v0",)}
    promised = {
        f"{method.zoo_name}-{env}"
        for method in available_methods()
        for env in tasks.get(method.setting, ("Pendulum-v1", "InvertedPendulum-v5"))
    }
    missing = sorted((promised | {"dpmd-Hopper-v5", "sdac-Hopper-v5"}) - names)
    assert not missing, f"train and add {', '.join(f'zoo/pretrained/{name}' for name in missing)} (docs: contributing)"


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_agents_weigh_little() -> None:
    small = [folder for folder in AGENTS if folder.name.endswith(SMALL_TASKS)]
    assert small and not {folder.name: size(folder) for folder in small if size(folder) >= MAX_BYTES_OF_SMALL}
    assert size(PRETRAINED) < MAX_BYTES_OF_ALL
