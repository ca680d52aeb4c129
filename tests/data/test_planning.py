"""Returns of stored episodes, with and without values that take the place of what followed."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import OfflineDataset
from sb3_diffusion.data.planning import planned_returns


def episodes(lengths: list[int], cut: list[bool], rewards: Any) -> OfflineDataset:
    """Episodes whose observations number the states, each with a last observation of its own."""
    n, ends = sum(lengths), np.cumsum(lengths) - 1
    flags = np.zeros((2, n), bool)
    flags[0, ends], flags[1, ends] = ~np.array(cut), cut
    states = np.arange(n, dtype=np.float32)[:, None]
    successors = states + 1.0
    successors[ends] = 100.0 + np.arange(len(lengths))[:, None]
    actions = np.zeros((n, 1), np.float32)
    return OfflineDataset.from_arrays(states, actions, np.array(rewards, np.float32), flags[0], flags[1], successors)


@pytest.mark.parametrize(("rule", "expected"), [("paper", [5.0, 1.0, 1.0]), ("official", [5.0, 5.0, 1.0])])
def test_three_steps_by_hand(rule: str, expected: list[float]) -> None:
    data = episodes([3], [False], [0.0, 0.0, 1.0])
    values = th.zeros(len(data.states))
    values[1] = 5.0
    assert planned_returns(data, data.rewards, 1.0, values, rule).tolist() == expected


def test_without_values_they_are_the_discounted_sums_of_each_episode() -> None:
    data = episodes([2, 4, 1], [False, True, False], range(1, 8))
    expected = [1 + 0.5 * 2, 2, 3 + 0.5 * 4 + 0.25 * 5 + 0.125 * 6, 4 + 0.5 * 5 + 0.25 * 6, 5 + 0.5 * 6, 6, 7]
    assert planned_returns(data, data.rewards, 0.5).tolist() == expected


@pytest.mark.parametrize(("rule", "expected"), [("paper", [2.0, 2.0, 4.0]), ("official", [0.0, 0.0, 0.0])])
def test_a_cut_is_no_end(rule: str, expected: list[float]) -> None:
    """Behind a cut the value of the state counts, behind a termination nothing."""
    data = episodes([2, 1, 1], [True, False, True], [0.0] * 4)
    values = th.zeros(len(data.states))
    for row, value in ((1, 4.0), (2, 7.0), (3, 8.0)):
        values[data.next_index[row]] = value
    values[data.next_index[2]] = 7.0  # behind the termination
    returns = planned_returns(data, data.rewards, 0.5, values, rule)
    assert returns[[0, 1, 3]].tolist() == [expected[0] / 2.0, expected[1], expected[2]] and returns[2] == 0.0


def test_it_is_what_a_loop_over_the_rows_says() -> None:
    th.manual_seed(0)
    lengths = [1, 5, 2, 9, 1, 3]
    data = episodes(lengths, [True, False, True, False, False, True], np.random.default_rng(0).normal(size=sum(lengths)))
    values, gamma = th.randn(len(data.states)), 0.9
    for rule in ("paper", "official"):
        expected: list[float] = []
        for row in reversed(range(len(data))):
            ends = bool(data.terminated[row] | data.truncated[row])
            reward, own, after = (float(x) for x in (data.rewards[row], values[row], values[data.next_index[row]]))
            if rule == "paper":
                rest = after * (not data.terminated[row]) if ends else max(expected[-1], after)
                expected.append(reward + gamma * rest)
            else:
                expected.append(max(reward + (0.0 if ends else gamma * expected[-1]), own))
        found = planned_returns(data, data.rewards, gamma, values, rule)
        th.testing.assert_close(found, th.tensor(expected[::-1]))


def test_an_unknown_rule_is_named() -> None:
    data = episodes([2], [False], [0.0, 0.0])
    with pytest.raises(ValueError, match="label_rule='mine'; known are paper, official"):
        planned_returns(data, data.rewards, 1.0, None, "mine")
