"""Reward transforms against their formulas, and scores against published numbers."""

import numpy as np
import pytest
import torch as th

from sb3_diffusion import OfflineDataset, normalized_score
from sb3_diffusion.data.rewards import REWARD_TRANSFORMS, RewardTransform, reward_transform
from sb3_diffusion.data.stored.source import ReferenceScores

REWARDS = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.5], np.float32)


def data(rewards: np.ndarray = REWARDS, reference: ReferenceScores | None = None) -> OfflineDataset:
    """Three episodes of two steps."""
    zeros = np.zeros((len(rewards), 1))
    return OfflineDataset.from_arrays(zeros, zeros, rewards, np.arange(len(rewards)) % 2, reference=reference)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", REWARDS),
        ("return_range_1000", REWARDS * 1000 / (1.5 - 1.0)),
        ("minus_one", REWARDS - 1),
        ("cql_antmaze", 4 * (REWARDS - 0.5)),
        ("antmaze100", 100 * REWARDS),
        ("standardize", (REWARDS - REWARDS.mean()) / REWARDS.std()),
        ("minmax_pm1", 2 * (REWARDS - 0.5)),
    ],
)
def test_formulas(name: str, expected: np.ndarray) -> None:
    transform = reward_transform(name, data())
    assert transform.name == name
    rewards = th.from_numpy(REWARDS)
    np.testing.assert_allclose(transform(rewards), expected, rtol=1e-6, atol=1e-6)
    assert th.equal(rewards, th.from_numpy(REWARDS))  # it was a copy
    assert reward_transform(transform, data()) is transform


def test_every_transform_has_a_formula_above() -> None:
    marks = test_formulas.pytestmark
    assert {case[0] for case in marks[0].args[1]} == set(REWARD_TRANSFORMS)


def test_nothing_is_none() -> None:
    assert reward_transform(None, data()) == RewardTransform("none", 1.0, 0.0)


@pytest.mark.parametrize("name", ["return_range_1000", "standardize", "minmax_pm1"])
def test_a_range_of_zero_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"reward_transform='{name}' divides by a range that is zero"):
        reward_transform(name, data(np.ones(4, np.float32)))


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="Unknown reward_transform='standardise'; did you mean standardize"):
        reward_transform("standardise", data())


def test_published_scores() -> None:
    assert normalized_score(3000.0, "hopper-medium-v2") == pytest.approx(92.8009, abs=1e-4)
    assert normalized_score([0, 1], "antmaze-umaze-v2").tolist() == [0.0, 100.0]
    assert normalized_score(np.array([17.0, 3071.4]), "rlzoo/hopper/mixed-v0").tolist() == [0.0, 100.0]
    assert normalized_score(5.0, (0.0, 10.0)) == 50.0


def test_scales_are_not_mixed() -> None:
    minari = ReferenceScores(0.0, 10.0, 1.0, "Minari")
    assert normalized_score(5.0, minari) == normalized_score(5.0, data(reference=minari)) == 0.5
    assert normalized_score(5.0, data(reference=minari).source) == 0.5


def test_without_a_scale() -> None:
    with pytest.raises(ValueError, match="arrays has no reference scores; pass the pair"):
        normalized_score(1.0, data())
    with pytest.raises(ValueError, match="There is no data set 'hopper'"):
        normalized_score(1.0, "hopper")
    with pytest.raises(ValueError, match="must differ"):
        normalized_score(1.0, (2.0, 2.0))
