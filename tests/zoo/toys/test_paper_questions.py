"""The bandit on which the questions of the paper are asked has the answer that the script says."""

import argparse
import importlib.util
from typing import Any

import numpy as np
import pytest
import torch as th

from tests.zoo.processes import ROOT

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("paper_questions", ROOT / "docs" / "paper_questions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_answer_is_that_of_samples(script: Any) -> None:
    known, rng = script.answer(), np.random.default_rng(0)
    n, dim = 100_000, 2
    samples = rng.normal(rng.choice([-script.PEAK, script.PEAK], (n, dim)), script.STD)
    samples = np.where(rng.random((n, dim)) < script.FLOOR, rng.uniform(-1, 1, (n, dim)), samples)
    values = script.value(th.as_tensor(samples)).numpy()
    assert values.mean() / dim == pytest.approx(known.target, abs=0.01)
    assert -values.mean() / dim == pytest.approx(known.entropy, abs=0.01)  # at temperature 1, Q is the log of the density
    uniform = script.value(th.as_tensor(rng.uniform(-1, 1, (n, dim)))).mean() / dim
    assert uniform == pytest.approx(known.uniform, abs=0.02)
    assert known.masses.sum() == pytest.approx(1.0) and known.best > known.target > known.uniform


def test_every_setting_is_tried_once_and_found_for_its_question(script: Any) -> None:
    arms = list(script.arms([0, 1]))
    assert len(arms) == len({tuple(arm.values()) for arm in arms}) == 2 * 3 * (4 + 3 + 1 + 1)
    rows = [{**{key: str(value) for key, value in arm.items()}, "value": str(index)} for index, arm in enumerate(arms)]
    for question, settings in script.QUESTIONS.items():
        for setting in settings:  # the default is the same training in all questions
            assert len(script.values_of(rows, "sdac", question, setting, "value")) == 2


def test_a_row_says_how_good_and_how_far_the_policy_is(script: Any) -> None:
    args = argparse.Namespace(
        critic="exact",
        temperature=1.0,
        random_steps=40,
        samples=500,
        device="cpu",
        updates=20,
        batch_size=8,
        n_particles=8,
        width=8,
    )
    arm = {"method": "qsm", **script.DEFAULT, "action_dim": 3, "seed": 0}
    row = script.measure(arm, args)
    assert {name: row[name] for name in arm} == arm
    assert 0.0 < row["distance"] < 1.0 and row["value"] < 1.0
