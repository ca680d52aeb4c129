"""The adapter of Isaac Lab, on a fake with the contract of both generations; and that of mjlab, which is nearly the same."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor import IsaacLabVecEnv, MjlabVecEnv
from tests.envs.tensor.fake_isaac import FakeIsaacEnv, FakeMjlabEnv

ANY_ENDS = pytest.mark.filterwarnings("ignore:This environment does not tell the last observation:UserWarning")


def zeros(env: IsaacLabVecEnv) -> th.Tensor:
    return th.zeros(env.num_envs, 2)


@pytest.mark.parametrize(
    "make", [lambda: IsaacLabVecEnv(FakeIsaacEnv(compute_final_obs=True)), lambda: MjlabVecEnv(FakeMjlabEnv())]
)
def test_an_episode_ends_in_all_three_ways(make) -> None:  # type: ignore[no-untyped-def]
    """Row 0 terminates, row 1 terminates in the step of its time limit, the others run into it."""
    env = make()
    assert env.reset_tensor().tolist() == [[100.0] * 3] * 4
    steps = [env.step_tensor(zeros(env)) for _ in range(5)]
    assert [step.terminated.tolist() for step in steps[:4]] == [[False] * 4] * 2 + [[True] + [False] * 3] + [[False] * 4]
    assert steps[4].terminated.tolist() == [False, True, False, False]
    assert steps[4].truncated.tolist() == [False, False, True, True]
    assert steps[2].final_valid.tolist() == [True, False, False, False]
    assert steps[3].final_valid.tolist() == [False] * 4  # the entry is there still, of the step before
    assert steps[4].final_valid.tolist() == [False, True, True, True]
    assert steps[2].final_observation[0].tolist() == [103.0] * 3
    assert steps[4].final_observation[:, 0].tolist()[1:] == [105.0] * 3
    assert steps[4].observation[:, 0].tolist() == [102.0, 100.0, 100.0, 100.0]
    assert steps[4].reward.tolist() == [2.0, 5.0, 5.0, 5.0] and steps[0].reward.tolist() == [1.0] * 4
    assert float(steps[4].log["Episode/length"]) == pytest.approx(5.0)


@pytest.mark.parametrize("generation", [2, 3])
def test_without_the_flag_nothing_is_claimed(generation: int) -> None:
    with pytest.warns(UserWarning, match="does not tell the last observation of an episode.*compute_final_obs"):
        env = IsaacLabVecEnv(FakeIsaacEnv(generation=generation))
    env.reset_tensor()
    for _ in range(5):
        step = env.step_tensor(zeros(env))
        assert step.final_observation is None and not step.final_valid.any()
    assert step.truncated.tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match=r"final_obs=True, but .*set cfg.compute_final_obs = True before gymnasium.make"):
        IsaacLabVecEnv(FakeIsaacEnv(generation=generation), final_obs=True)
    with pytest.raises(ValueError, match="Unknown final_obs='yes'; known are auto, True, False"):
        IsaacLabVecEnv(FakeIsaacEnv(), final_obs="yes")


def test_a_flag_that_is_taken_back_leaves_nothing_stale() -> None:
    """The entry outlives the flag; what it says is of another step."""
    env = IsaacLabVecEnv(FakeIsaacEnv(compute_final_obs=True))
    env.reset_tensor()
    for _ in range(5):
        env.step_tensor(zeros(env))
    env.simulator.cfg.compute_final_obs = False
    assert "final_obs" in env.simulator.extras
    for _ in range(5):
        step = env.step_tensor(zeros(env))
        assert not step.final_valid.any()
    assert step.truncated.any()


def test_final_observations_can_be_left_aside() -> None:
    env = IsaacLabVecEnv(FakeIsaacEnv(compute_final_obs=True), final_obs=False)
    env.reset_tensor()
    assert not any(env.step_tensor(zeros(env)).final_valid.any() for _ in range(6))


def test_another_layout_is_not_misread() -> None:
    class Fork(FakeIsaacEnv):
        def end(self, done: th.Tensor) -> None:
            super().end(done)
            self.extras["final_obs"] = {"policy": self.observed["policy"][done]}  # rows of ended episodes only

    env = IsaacLabVecEnv(Fork(compute_final_obs=True))
    env.reset_tensor()
    with pytest.warns(UserWarning, match="final_obs of this environment is not arranged as its observations are"):
        steps = [env.step_tensor(zeros(env)) for _ in range(5)]
    assert not any(step.final_valid.any() for step in steps)


def test_an_error_of_the_simulator_is_let_through() -> None:
    class MaskNative(FakeIsaacEnv):
        def end(self, done: th.Tensor) -> None:
            raise RuntimeError("Mask-native reset overrides must return reset indices")

    env = IsaacLabVecEnv(MaskNative(compute_final_obs=True))
    env.reset_tensor()
    with pytest.raises(RuntimeError, match="Mask-native"):
        for _ in range(5):
            env.step_tensor(zeros(env))


@pytest.mark.parametrize(
    "make", [lambda: IsaacLabVecEnv(FakeIsaacEnv(compute_final_obs=True)), lambda: MjlabVecEnv(FakeMjlabEnv())]
)
def test_a_finite_horizon_has_no_timeouts(make) -> None:  # type: ignore[no-untyped-def]
    env = make()
    env.simulator.cfg.is_finite_horizon = True
    env.reset_tensor()
    steps = [env.step_tensor(zeros(env)) for _ in range(5)]
    assert not any(step.truncated.any() for step in steps)
    assert steps[4].terminated.tolist() == [False, True, True, True]


# -- groups ----------------------------------------------------------------------------------------------------------------


def test_the_critic_may_see_more() -> None:
    env = IsaacLabVecEnv(FakeIsaacEnv(compute_final_obs=True), critic_group="critic")
    assert isinstance(env.observation_space, spaces.Dict)
    assert {key: part.shape for key, part in env.observation_space.spaces.items()} == {"policy": (3,), "critic": (5,)}
    assert env.privileged == ("critic",)
    seen = env.reset_tensor()
    assert isinstance(seen, dict) and seen["critic"].tolist() == [[200.0] * 5] * 4
    for _ in range(3):
        step = env.step_tensor(zeros(env))
    assert isinstance(step.final_observation, dict)
    assert step.final_observation["critic"][0, 0] == 203.0 and step.final_observation["policy"][0, 0] == 103.0


@ANY_ENDS
def test_terms_may_be_kept_apart() -> None:
    env = IsaacLabVecEnv(FakeIsaacEnv(terms=True))
    assert list(env.observation_space.spaces) == ["position", "speed"] and env.privileged == ()  # type: ignore[attr-defined]
    both = IsaacLabVecEnv(FakeIsaacEnv(terms=True), critic_group="critic")
    expected = ["critic/position", "critic/speed", "policy/position", "policy/speed"]
    assert sorted(both.observation_space.spaces) == expected  # type: ignore[attr-defined]
    assert both.privileged == ("critic/position", "critic/speed")
    seen = both.reset_tensor()
    assert isinstance(seen, dict) and seen["critic/position"].shape == (4, 4) and seen["policy/speed"].shape == (4, 1)


@ANY_ENDS
def test_any_group_can_be_observed() -> None:
    assert IsaacLabVecEnv(FakeIsaacEnv(), group="critic").observation_space.shape == (5,)
    with pytest.raises(ValueError, match=r"group='polisy' is no observation group of this environment; did you mean policy\?"):
        IsaacLabVecEnv(FakeIsaacEnv(), group="polisy")
    with pytest.raises(ValueError, match=r"critic_group='x' is no observation group .* known are critic, policy"):
        IsaacLabVecEnv(FakeIsaacEnv(), critic_group="x")
    with pytest.raises(ValueError, match="critic_group='policy' is what the actor reads already"):
        IsaacLabVecEnv(FakeIsaacEnv(), critic_group="policy")
    with pytest.raises(ValueError, match=r"group='policy' is no observation group"):
        MjlabVecEnv(FakeMjlabEnv(), group="policy")


@pytest.mark.parametrize(("settings", "warned"), [({"history_length": 3}, True), ({"history_length": 0}, False), ({}, False)])
def test_terms_with_a_history_lack_a_frame(settings: dict[str, int], warned: bool) -> None:
    from types import SimpleNamespace

    term = SimpleNamespace(func=len, **settings)
    fake = FakeIsaacEnv(compute_final_obs=True)
    fake.cfg.observations = SimpleNamespace(policy=SimpleNamespace(joints=term, enable_corruption=True), critic=None)
    if warned:
        with pytest.warns(UserWarning, match="lack the newest frame of terms that have a history: policy/joints"):
            IsaacLabVecEnv(fake)
    else:
        IsaacLabVecEnv(fake)


# -- actions ---------------------------------------------------------------------------------------------------------------


@ANY_ENDS
def test_actions_live_in_a_box() -> None:
    env = IsaacLabVecEnv(FakeIsaacEnv(), action_bound=3.0)
    assert env.action_space == spaces.Box(-3.0, 3.0, (2,), np.float32)
    env.reset_tensor()
    env.step_tensor(th.tensor([[9.0, -9.0]] * 4))
    assert env.simulator.received[-1].tolist() == [[3.0, -3.0]] * 4
    each = IsaacLabVecEnv(FakeIsaacEnv(), action_bound=[0.5, 2.0])
    assert each.action_space.high.tolist() == [0.5, 2.0]  # type: ignore[attr-defined]
    assert IsaacLabVecEnv(FakeIsaacEnv()).action_space == spaces.Box(-1.0, 1.0, (2,), np.float32)


@ANY_ENDS
def test_bounds_of_the_environment_hold() -> None:
    fake = FakeIsaacEnv()
    fake.single_action_space = spaces.Box(-0.5, 4.0, (2,), np.float32)
    assert IsaacLabVecEnv(fake, action_bound=1.0).action_space == spaces.Box(-0.5, 1.0, (2,), np.float32)
    assert IsaacLabVecEnv(fake, action_bound=None).action_space == fake.single_action_space
    for bound, message in ((None, "have no bounds; pass action_bound=1.0"), (0.0, "must be finite and positive")):
        with pytest.raises(ValueError, match=message):
            IsaacLabVecEnv(FakeIsaacEnv(), action_bound=bound)
    with pytest.raises(ValueError, match=r"action_bound=\[1, 2, 3\] does not fit actions of the shape \(2,\)"):
        IsaacLabVecEnv(FakeIsaacEnv(), action_bound=[1, 2, 3])


# -- the rest --------------------------------------------------------------------------------------------------------------


@ANY_ENDS
def test_seeds_reach_the_simulator_by_keyword() -> None:
    env = IsaacLabVecEnv(FakeIsaacEnv())
    env.seed(11)
    env.reset_tensor()
    env.reset()
    assert env.simulator.seeds == [11, None]
    assert env.get_attr("step_dt") == [0.02] * 4
    env.close()
    assert env.simulator.closed


@ANY_ENDS
def test_wrappers_of_gymnasium_may_lie_around_it() -> None:
    class Around(gym.Wrapper):
        pass

    class Base(FakeIsaacEnv, gym.Env):  # type: ignore[misc]
        render_mode = None

        @property
        def unwrapped(self):  # type: ignore[no-untyped-def,override]
            return self

    env = IsaacLabVecEnv(Around(Base()))
    assert env.reset_tensor().shape == (4, 3)  # type: ignore[union-attr]
    assert env.episode_length_buf is env.simulator.episode_length_buf
    assert env.randomize_phases()


def test_mjlab_is_told_not_to_reset() -> None:
    fake = FakeMjlabEnv()
    assert fake.cfg.auto_reset
    env = MjlabVecEnv(fake, critic_group="critic")
    assert not fake.cfg.auto_reset and env.privileged == ("critic",)
    env.reset_tensor()
    for _ in range(12):  # the fake refuses a step before the reset of what has ended
        env.step_tensor(zeros(env))
