"""The page of an agent: what the Hub needs is there, and no value of a run can become markup."""

import re
import shlex
from typing import Any

import pytest
import yaml

from zoo.hub.model_card import agent_file, code, model_card, text, training_command, with_scores
from zoo.hub.published import agent_name

EVIL = "</td><script>alert(1)</script>\n---\n```\n# owned ![x](https://evil.example/x.png) | `a` <img src=x onerror=y>"


def facts(value: str) -> dict[str, Any]:
    evaluation = {"mean_reward": -147.046, "std_reward": 87.5, "n_eval_episodes": 10, "mean_length": 200.0, "seed": 3}
    return {
        "algorithm": "sdac",
        "class": "SDAC",
        "env_id": "Pendulum-v1",
        "evaluations": [{**evaluation, "is_deterministic": kind} for kind in (True, False)],
        "training": {
            "timesteps": 10_000,
            "unit": "environment steps",
            "seed": 7,
            "wall_time_s": 146.1,
            "machine": value,
            "versions": {"torch": value, value: "1"},
        },
        "versions": {"python": "3.11", "torch": "2.13"},
        "commit": value,
    }


def split(card: str) -> tuple[dict[str, Any], str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def outside_code(body: str) -> str:
    lines, fence = [], ""
    for line in body.splitlines():
        if not fence and line.startswith("```"):
            fence = re.match("`+", line).group()  # type: ignore[union-attr]
        elif fence and line == fence:
            fence = ""
        elif not fence:
            lines.append(line)
    assert not fence
    return "\n".join(lines)


def test_front_matter_is_what_rl_zoo3_and_the_hub_look_for() -> None:
    front, body = split(model_card(facts("Linux"), {"policy": "DiffusionPolicy"}, {"algo": "sdac"}, "me/sdac-Pendulum-v1"))
    assert front["library_name"] == "stable-baselines3"
    assert {"Pendulum-v1", "reinforcement-learning", "stable-baselines3", "sb3-diffusion"} <= set(front["tags"])
    (index,) = front["model-index"]
    assert index["name"].lower() == "sdac"
    (result,) = index["results"]
    assert result["dataset"]["name"] == "Pendulum-v1"
    assert result["task"]["type"] == "reinforcement-learning"
    assert result["metrics"][0]["value"] == "-147.05 +/- 87.50"
    assert "| deterministic | -147.05 +/- 87.50 | 200.0 | 10 | 3 |" in body
    assert "| stochastic | " in body
    assert "| budget | 10000 environment steps |" in body
    assert "| seed | 7 |" in body
    assert "--from-hub -orga me --repo-name sdac-Pendulum-v1" in body
    assert "hf_hub_download('me/sdac-Pendulum-v1', 'sdac-Pendulum-v1.zip')" in body


def test_scores_with_both_kinds_of_noise() -> None:
    both = facts("Linux")
    fixed, stochastic = both["evaluations"]
    fresh = {
        **fixed,
        "mean_reward": -160.0,
        "evaluation_noise": "fresh",
        "commit": "abc",
        "versions": {"sb3_diffusion": "9.9"},
    }
    before = model_card(both, {}, {"algo": "sdac"}, None)
    assert "noise" not in before
    both["evaluations"] = [{**fixed, "evaluation_noise": "fixed"}, fresh, stochastic]
    _, body = split(model_card(both, {}, {"algo": "sdac"}, None))
    assert "| deterministic, fixed noise | -147.05 +/- 87.50 | 200.0 | 10 | 3 |" in body
    assert "| deterministic, fresh noise | -160.00 +/- 87.50 | 200.0 | 10 | 3 |" in body
    assert "Fresh: all of it is drawn anew for every action" in body
    assert "The score of deterministic, fresh noise was added later, with sb3\\_diffusion 9.9, commit abc." in body
    assert with_scores(before, both) == model_card(both, {}, {"algo": "sdac"}, None)
    with pytest.raises(ValueError, match=r"no sections '## Scores' and '## Act'"):
        with_scores("# Something else", both)


def test_values_cannot_become_markup() -> None:
    settings = {"policy_kwargs": {EVIL: EVIL}}
    front, body = split(model_card(facts(EVIL), settings, {"algo": "sdac", "hyperparams": {"a": EVIL}}, None))
    assert front["model-index"][0]["name"] == "SDAC"
    plain = outside_code(body)
    assert not re.search("<(?!!)", plain)
    assert "![" not in plain.replace("\\[", "")
    assert "://evil" not in plain
    assert "owned" in plain  # it is there, as text in a cell
    assert not any(line.startswith("# owned") for line in plain.splitlines())
    rows = [line for line in plain.splitlines() if "owned" in line]
    assert all(line.startswith("| ") and line.endswith(" |") for line in rows)


def test_front_matter_cannot_be_broken() -> None:
    front, _ = split(model_card({**facts(""), "env_id": "a\n---\nlibrary_name: evil", "class": 'X"\n- y'}, {}, {}, None))
    assert front["library_name"] == "stable-baselines3"
    assert front["tags"][0] == "a --- library_name: evil"


def test_text_and_code() -> None:
    assert text("a|b\n*c*") == "a\\|b \\*c\\*"
    assert text("<b>&") == "&lt;b&gt;&amp;"
    assert code("x = 1\n", "python") == "```python\nx = 1\n```"
    assert code("````\nx").startswith("`````\n")


def test_command_repeats_the_training_without_paths() -> None:
    args = {
        "algo": "sdac",
        "env": "Pendulum-v1",
        "seed": 3,
        "n_timesteps": -1,
        "log_folder": "/home/somebody",
        "storage": "postgresql://user:secret@host",
        "hyperparams": {"policy_kwargs": {"net_arch": [16]}, "note": "a'; rm -rf x"},
    }
    command = training_command(args)
    assert command.startswith("python zoo/train.py --algo sdac --env Pendulum-v1 --seed 3 -params ")
    assert "somebody" not in command
    assert "secret" not in command
    assert shlex.split(command)[-1] == 'note:"a\'; rm -rf x"'


def test_name_of_the_archive_is_that_of_rl_zoo3() -> None:
    for env_id in ("Hopper-v5", "dm_control/cheetah-run-v0", "toy/rings-v0"):
        assert agent_file("sdac", env_id) == f"{agent_name('sdac', env_id)}.zip"
