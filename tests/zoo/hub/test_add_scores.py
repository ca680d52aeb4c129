"""Agents of earlier versions get the score that they lack, and keep those that they have."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from zoo.hub.add_scores import add_scores
from zoo.hub.published import PRETRAINED


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An agent as it was published before there were two kinds of noise."""
    folder = tmp_path / "qsm-Pendulum-v1"
    shutil.copytree(PRETRAINED / folder.name, folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    scores = [score for score in results["evaluations"] if score.get("evaluation_noise") != "fresh"]
    results["evaluations"] = [{key: value for key, value in score.items() if key != "evaluation_noise"} for score in scores]
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def read(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_the_missing_score_is_added_once(old: Path) -> None:
    before = read(old)
    (added,) = add_scores(old, "abc", n_eval_episodes=5)
    assert added.endswith(" over 5 deterministic episodes with fresh noise")
    fixed, fresh, stochastic = read(old)["evaluations"]
    assert fixed == {**before["evaluations"][0], "evaluation_noise": "fixed"} and stochastic == before["evaluations"][1]
    assert (fresh["commit"], fresh["n_eval_episodes"], len(fresh["returns"])) == ("abc", 5, 5)
    assert fresh["returns"] != fixed["returns"][:5] and fresh["versions"]["torch"]
    assert {key: value for key, value in read(old).items() if key != "evaluations"} == {
        key: value for key, value in before.items() if key != "evaluations"
    }
    card = (old / "README.md").read_text(encoding="utf-8")
    assert f"| deterministic, fresh noise | {fresh['mean_reward']:.2f} +/- " in card and "## Versions" in card
    assert add_scores(old, "def", n_eval_episodes=4) == [] and read(old)["evaluations"][1] == fresh


def test_a_score_of_fewer_episodes_is_replaced(old: Path) -> None:
    add_scores(old, "abc", n_eval_episodes=2)
    before = read(old)
    (added,) = add_scores(old, "def", n_eval_episodes=3)
    assert added.endswith(" over 3 deterministic episodes with fresh noise")
    fixed, fresh, stochastic = read(old)["evaluations"]
    assert (fixed, stochastic) == (before["evaluations"][0], before["evaluations"][2])
    assert (fresh["commit"], len(fresh["returns"])) == ("def", 3)
    # the first score is that of the agent, whose results begin with it
    assert fixed["n_eval_episodes"] > 3 and read(old)["mean_reward"] == fixed["mean_reward"]


def test_agents_without_such_noise_lack_nothing(tmp_path: Path) -> None:
    shutil.copytree(PRETRAINED / "sac-Pendulum-v1", tmp_path / "sac-Pendulum-v1")
    before = read(tmp_path / "sac-Pendulum-v1")
    assert add_scores(tmp_path / "sac-Pendulum-v1", "abc") == [] and read(tmp_path / "sac-Pendulum-v1") == before


def test_a_folder_without_scores(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no scores to add to"):
        add_scores(tmp_path, None)


def test_an_agent_whose_environment_is_called_as_its_data(tmp_path: Path) -> None:
    folder = tmp_path / "fql-pendulum-medium-v0"
    shutil.copytree(PRETRAINED / folder.name, folder)
    results = read(folder)
    results["evaluations"] = [score for score in results["evaluations"] if score.get("evaluation_noise") != "fresh"]
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (added,) = add_scores(folder, "abc", n_eval_episodes=2)
    assert added.endswith(" over 2 deterministic episodes with fresh noise")
