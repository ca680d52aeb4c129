"""What every tensor environment promises, as tensors and to Stable-Baselines3."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

from sb3_diffusion import QSM
from sb3_diffusion.envs.tensor import TensorVecEnv, check_tensor_env
from sb3_diffusion.envs.tensor.numpy_face import STALE
from sb3_diffusion.envs.tensor.observations import Observation, each
from tests.envs.tensor.clock import LIMIT, START, ClockEnv, FirstOfNext, Reporting
from tests.envs.tensor.kinds import CLOCKS, KINDS, UNKNOWN

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not (know|tell) the last observation:UserWarning"),
    pytest.mark.filterwarnings("ignore:seed=. is not used. envpool takes its seed:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*environment is .*Monitor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type:UserWarning"),
    pytest.mark.filterwarnings("ignore:The `render_mode` attribute is not defined:UserWarning"),
]


def parts(observation: Observation) -> list[th.Tensor]:
    return list(observation.values()) if isinstance(observation, dict) else [observation]


def random_actions(env: VecEnv, n_steps: int) -> th.Tensor:
    space = env.action_space
    assert isinstance(space, spaces.Box)
    draws = th.rand(n_steps, env.num_envs, *space.shape, generator=th.Generator().manual_seed(0))
    return th.as_tensor(space.low) + draws * th.as_tensor(space.high - space.low)


def value(observation: Observation) -> th.Tensor:
    """A value function that tells a clock: the sum of all that is seen, per environment."""
    return th.stack([part.float().flatten(1).mean(dim=1) for part in parts(observation)]).mean(0)


# -- tensors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_is_kept(kind: str) -> None:
    check_tensor_env(KINDS[kind](), n_steps=30)


@pytest.mark.parametrize("kind", KINDS)
def test_both_faces_tell_the_same(kind: str) -> None:
    """The same actions, once in tensors and once in NumPy: the same numbers would be stored."""
    tensor_env, numpy_env = KINDS[kind](), KINDS[kind]()
    for env in (tensor_env, numpy_env):
        env.seed(7)
    seen, array = tensor_env.reset_tensor(), numpy_env.reset()
    for actions in random_actions(tensor_env, 12):
        step = tensor_env.step_tensor(actions)
        following, reward, done, infos = numpy_env.step(actions.numpy())
        assert np.array_equal(step.reward.numpy(), reward.astype(np.float32))
        assert np.array_equal(step.done.numpy(), done)
        compare(step.observation, following)
        for row in np.flatnonzero(done):
            assert infos[row].get("TimeLimit.truncated", False) == bool(step.truncated[row])
            # what is not known is what was seen before
            assert step.final_valid[row] or infos[row][STALE]
            source = step.final_observation if step.final_valid[row] else seen
            assert source is not None
            compare(each(lambda part, row=row: part[row], source), infos[row]["terminal_observation"])
        compare(seen, array)
        seen, array = step.observation, following


def compare(tensors: Observation, arrays: np.ndarray | dict[str, np.ndarray] | tuple[np.ndarray, ...]) -> None:
    if isinstance(tensors, dict):
        assert isinstance(arrays, dict)
        for key, tensor in tensors.items():
            compare(tensor, arrays[key])
    else:
        assert np.array_equal(tensors.numpy(), np.asarray(arrays, tensors.numpy().dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_returned_stays(kind: str) -> None:
    """Simulators write their buffers again; what a rollout has stored must not change with them."""
    env = KINDS[kind]()
    first = env.reset_tensor()
    kept = [(tensor, tensor.clone()) for tensor in parts(first)]
    for actions in random_actions(env, 8):
        step = env.step_tensor(actions)
        tensors = [*parts(step.observation), step.reward, step.terminated, step.truncated, step.final_valid]
        tensors += [] if step.final_observation is None else parts(step.final_observation)
        kept += [(tensor, tensor.clone()) for tensor in tensors]
    assert all(th.equal(tensor.nan_to_num(), copy.nan_to_num()) for tensor, copy in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_what_somebody_writes_into_arrays_does_no_harm(kind: str) -> None:
    written, untouched = KINDS[kind](), KINDS[kind]()
    for env in (written, untouched):
        env.seed(1)
    spoil(written.reset())
    untouched.reset()
    for actions in random_actions(written, 8):
        one, other = written.step(actions.numpy()), untouched.step(actions.numpy())
        assert np.array_equal(one[1], other[1]) and np.array_equal(one[2], other[2])
        spoil(one[0])
        one[1][:] = np.nan


def spoil(observation: np.ndarray | dict[str, np.ndarray] | tuple[np.ndarray, ...]) -> None:
    for entry in observation.values() if isinstance(observation, dict) else [observation]:
        assert isinstance(entry, np.ndarray)
        entry[...] = 1


def test_actions_are_cut_off_and_checked() -> None:
    env = ClockEnv()
    env.reset_tensor()
    assert env.step_tensor(th.tensor([[3.0], [-9.0], [0.5]])).reward.tolist() == [1.0, -1.0, 0.5]
    with pytest.raises(RuntimeError, match="before the first reset_tensor"):
        ClockEnv().step_tensor(th.zeros(3, 1))
    with pytest.raises(ValueError, match=r"shape \(3,\) and should have \(3, 1\), one row per environment"):
        env.step_tensor(th.zeros(3))


def test_both_flags_at_once_are_a_termination() -> None:
    env = ClockEnv(terminate_after=LIMIT)
    env.reset_tensor()
    steps = [env.step_tensor(th.zeros(3, 1)) for _ in range(LIMIT)]
    assert steps[-1].terminated.all() and not steps[-1].truncated.any()

    class Both(Reporting):
        def change(self, step):  # type: ignore[no-untyped-def]
            return step._replace(truncated=th.ones_like(step.done), terminated=th.ones_like(step.done))

    both = Both(ClockEnv())
    both.reset_tensor()
    step = both.step_tensor(th.zeros(3, 1))
    assert step.terminated.all() and not step.truncated.any()
    infos = both.step(np.zeros((3, 1)))[3]
    assert not any(info["TimeLimit.truncated"] for info in infos)


# -- time-outs -------------------------------------------------------------------------------------------------------------


def bootstrapped(env: TensorVecEnv, n_steps: int) -> list[float]:
    """What an algorithm would add to the reward at each time-out: V of the last observation, else of the one before."""
    seen, values = env.reset_tensor(), []
    for actions in random_actions(env, n_steps):
        step = env.step_tensor(actions)
        before = value(seen)
        last = before if step.final_observation is None else th.where(step.final_valid, value(step.final_observation), before)
        values += last[step.truncated].tolist()
        seen = step.observation
    assert values, "no time-out was seen"
    return values


def assert_timeouts_bootstrap_from(env: TensorVecEnv, clock: float) -> None:
    values = bootstrapped(env, 12)
    assert values == pytest.approx([clock] * len(values))  # means of clocks, of which the next one is one hundredth away


def clocks_only(env: TensorVecEnv) -> TensorVecEnv:
    if isinstance(env, ClockEnv | Reporting):
        clock = env if isinstance(env, ClockEnv) else env.env
        assert isinstance(clock, ClockEnv)
        clock.observe = lambda state: state[:, :1].expand(-1, 2).clone()  # type: ignore[method-assign]
    return env


@pytest.mark.parametrize("kind", CLOCKS)
def test_a_timeout_is_bootstrapped_from_the_last_observation(kind: str) -> None:
    assert_timeouts_bootstrap_from(clocks_only(KINDS[kind]()), START + LIMIT)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_without_a_last_observation_it_is_the_one_before(kind: str) -> None:
    assert_timeouts_bootstrap_from(clocks_only(KINDS[kind]()), START + LIMIT - 1)


def test_this_test_fails_for_the_first_observation_of_the_next_episode() -> None:
    wrong = clocks_only(FirstOfNext(ClockEnv()))
    with pytest.raises(AssertionError):
        assert_timeouts_bootstrap_from(wrong, START + LIMIT)
    assert_timeouts_bootstrap_from(wrong, START)
    with pytest.raises(ValueError, match="it is the first observation of the next episode"):
        check_tensor_env(wrong, n_steps=30)


@pytest.mark.parametrize(
    ("make", "last"),
    [
        (ClockEnv, START + LIMIT),
        (KINDS["clock, ends unknown"], START + LIMIT - 1),
        pytest.param(lambda: FirstOfNext(ClockEnv()), START, id="wrong"),
    ],
)
def test_what_sb3_makes_of_a_timeout(make, last: float) -> None:  # type: ignore[no-untyped-def]
    """In SB3's own rollout buffer, the reward of a time-out has the value of what was given as the last observation."""
    env = clocks_only(make())
    model = PPO("MlpPolicy", env, n_steps=LIMIT, batch_size=LIMIT * 3, gamma=0.5, n_epochs=1)
    model.policy.predict_values = lambda observation: value(observation).reshape(-1, 1)  # type: ignore[method-assign,assignment]
    model.learn(LIMIT * 3)
    buffer = model.rollout_buffer
    played = np.clip(buffer.actions.reshape(3, LIMIT), -1.0, 1.0)  # SB3 has put environments first
    assert buffer.rewards[-1] == pytest.approx(played[:, -1] + 0.5 * last, rel=1e-6)
    assert buffer.rewards[0] == pytest.approx(played[:, 0])


@pytest.mark.parametrize(("kind", "clock"), [("clock", START + LIMIT), ("clock, ends unknown", START + LIMIT - 1)])
def test_what_sb3_replays_of_a_timeout(kind: str, clock: float) -> None:
    env = clocks_only(KINDS[kind]())
    model = SAC("MlpPolicy", env, learning_starts=1000, buffer_size=300)
    model.learn(3 * (LIMIT + 1))
    buffer = model.replay_buffer
    assert buffer is not None
    assert np.array_equal(buffer.next_observations[: LIMIT - 1, :, 0].T, [[START + n for n in range(1, LIMIT)]] * 3)
    assert (buffer.next_observations[LIMIT - 1] == clock).all() and (buffer.timeouts[LIMIT - 1] == 1).all()
    assert (buffer.observations[LIMIT] == START).all()


def test_unknown_ends_are_said_once() -> None:
    env = KINDS["clock, ends unknown"]()
    env.reset()
    with pytest.warns(UserWarning, match="Silent does not know the last observation") as caught:
        for _ in range(LIMIT):
            env.step(np.zeros((3, 1)))
    assert len(caught) == 1


# -- phases, limits, seeds, statistics -------------------------------------------------------------------------------------


def ends(env: TensorVecEnv, n_steps: int) -> th.Tensor:
    return th.stack([env.step_tensor(actions).done for actions in random_actions(env, n_steps)])


def test_random_phases_spread_the_first_timeouts() -> None:
    env = ClockEnv(num_envs=200, limit=20)
    env.seed(0)
    env.reset_tensor()
    assert ends(env, 20).sum(1).tolist() == [0] * 19 + [200]
    env.reset_tensor(random_phases=True)
    first = ends(env, 20).sum(1)
    assert first.sum() == 200 and (first > 0).all() and first.max() < 30
    assert set(ends(env, 20).sum(0).tolist()) == {1}  # and stay apart
    assert env.randomize_phases()
    assert not KINDS["VecEnv"]().randomize_phases()


@pytest.mark.parametrize("kind", ["clock", "Isaac Lab 3", "Isaac Lab 2", "mjlab"])
def test_the_limit_and_the_clock_can_be_written(kind: str) -> None:
    env = KINDS[kind]()
    assert env.max_episode_length == 5
    env.reset_tensor()
    env.max_episode_length = 9
    assert env.max_episode_length == 9 and env.get_attr("max_episode_length") == [9] * env.num_envs
    truncated = th.stack([env.step_tensor(actions).truncated for actions in random_actions(env, 9)])
    assert truncated[:, -1].tolist() == [False] * 8 + [True]
    env.set_attr("max_episode_length", 2)
    assert env.episode_length_buf is not None
    env.episode_length_buf.fill_(1)
    assert env.step_tensor(random_actions(env, 1)[0]).truncated[-1]
    for wrong in (0, 2.5):
        with pytest.raises((ValueError, TypeError), match="max_episode_length="):
            env.max_episode_length = wrong  # type: ignore[assignment]


@pytest.mark.parametrize("kind", ["envpool", "VecEnv", "clock, ends unknown"])
def test_a_limit_that_cannot_be_written_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"max_episode_length=7 cannot be set: \w+ has a limit of its own"):
        KINDS[kind]().max_episode_length = 7


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("torch")])
def test_a_seed_fixes_an_environment(kind: str) -> None:
    runs = []
    for seed in (3, 3, 4):
        env = KINDS[kind]()
        env.seed(seed)
        seen = [env.reset_tensor(random_phases=True)]
        seen += [env.step_tensor(actions).observation for actions in random_actions(env, 12)]
        runs.append(th.stack([parts(observation)[0] for observation in seen]))
    assert th.equal(runs[0], runs[1]) and not th.equal(runs[0], runs[2])


def test_episodes_are_counted_on_the_device() -> None:
    env = ClockEnv(num_envs=2, limit=3)
    env.reset_tensor()
    for step in range(4):
        env.step_tensor(th.tensor([[0.25], [-1.0]]) if step < 3 else th.ones(2, 1))
    assert env.episodes.finished_returns.tolist() == [0.75, -3.0]
    assert env.episodes.returns.tolist() == [1.0, 1.0] and env.episodes.lengths.tolist() == [1, 1]
    assert env.episodes.pop() == (2, (0.75 - 3.0) / 2, 3.0)
    assert env.episodes.pop().n_episodes == 0 and np.isnan(env.episodes.pop().mean_return)
    env.reset_tensor()
    assert env.episodes.lengths.tolist() == [0, 0]


def test_a_running_nan_does_not_reach_the_statistics() -> None:
    env = ClockEnv(num_envs=2, limit=2)
    env.reset_tensor()
    env.episodes.update(th.tensor([1.0, float("nan")]), th.tensor([True, False]))
    assert env.episodes.pop() == (1, 1.0, 1.0)


# -- a VecEnv of Stable-Baselines3 -----------------------------------------------------------------------------------------


def policy_for(env: VecEnv) -> str:
    return "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"


@pytest.mark.parametrize("kind", KINDS)
def test_policies_are_evaluated(kind: str, tmp_path: Path) -> None:
    env = KINDS[kind]()
    model = PPO(policy_for(env), env, n_steps=8, batch_size=8, n_epochs=1)
    vec_env = model.get_env()
    assert vec_env is not None
    returns, lengths = evaluate_policy(model, vec_env, n_eval_episodes=4, return_episode_rewards=True)
    assert isinstance(lengths, list) and isinstance(returns, list) and len(lengths) == len(returns) == 4
    assert all(0 < length <= 5 for length in lengths)
    callback = EvalCallback(KINDS[kind](), n_eval_episodes=2, eval_freq=8, log_path=str(tmp_path), verbose=0)
    model.learn(8 * env.num_envs, callback=callback)
    assert np.load(tmp_path / "evaluations.npz")["ep_lengths"].max() <= 5


def test_the_monitor_is_built_in() -> None:
    env = ClockEnv()
    env.reset()
    for _ in range(LIMIT - 1):
        assert env.step(np.ones((3, 1)))[3] == [{}, {}, {}]
    infos = env.step(np.ones((3, 1)))[3]
    assert [(info["episode"]["r"], info["episode"]["l"]) for info in infos] == [(5.0, 5)] * 3
    assert env.env_is_wrapped(Monitor) == [True] * 3
    monitored = VecMonitor(ClockEnv())
    monitored.reset()
    infos = [monitored.step(np.ones((3, 1)))[3] for _ in range(LIMIT)][-1]
    assert infos[2]["episode"]["r"] == 5.0


@pytest.mark.parametrize("algorithm", [PPO, SAC, QSM])
@pytest.mark.parametrize("kind", ["torch/Pendulum", "Isaac Lab 3, terms and critic", "Isaac Lab 2"])
def test_training_by_way_of_numpy(algorithm, kind: str) -> None:  # type: ignore[no-untyped-def]
    env = KINDS[kind]()
    small: dict[str, Any] = {"n_steps": 16, "batch_size": 16} if algorithm is PPO else {"learning_starts": 10, "batch_size": 8}
    if algorithm is QSM:
        model = QSM("DiffusionPolicy", env, policy_kwargs={"net_arch": [8], "diffusion_steps": 2}, **small)
    else:
        model = algorithm(policy_for(env), env, policy_kwargs={"net_arch": [8]}, seed=0, **small)
    model.learn(64)
    assert model.num_timesteps >= 64 and model.ep_info_buffer
    actions, _ = model.predict(env.reset(), deterministic=True)  # type: ignore[arg-type]
    assert actions.shape == (env.num_envs, *env.action_space.shape)  # type: ignore[misc]


def test_observations_can_be_normalised() -> None:
    env = VecNormalize(ClockEnv())
    model = PPO("MlpPolicy", env, n_steps=10, batch_size=30)
    model.learn(30)
    seen = obs_as_tensor(env.reset(), model.device)
    assert isinstance(seen, th.Tensor) and seen[:, 0].abs().max() < 10.0


def test_attributes_are_shared() -> None:
    env = ClockEnv()
    assert env.get_attr("numbers", [0])[0].tolist() == [0.0, 1.0, 2.0]
    assert env.has_attr("terminate_after") and not env.has_attr("nothing")
    env.set_attr("terminate_after", 2)
    assert env.terminate_after == 2
    assert env.env_method("randomize_phases") == [True] * 3
    for call in (lambda: env.set_attr("terminate_after", 1, [0]), lambda: env.env_method("randomize_phases", indices=1)):
        with pytest.raises(ValueError, match=r"is a part of the environments, but .*; leave indices out"):
            call()
    assert env.env_is_wrapped(Monitor, [0, 1]) == [True, True]


def test_wrong_spaces_are_refused() -> None:
    class Unbounded(ClockEnv):
        def __init__(self) -> None:
            super(ClockEnv, self).__init__(2, spaces.Box(-1, 1, (2,)), spaces.Box(-np.inf, np.inf, (1,)), 5)

    with pytest.raises(ValueError, match="has no finite width"):
        Unbounded()
    with pytest.raises(ValueError, match="num_envs=0 must be at least 1"):
        ClockEnv(num_envs=0)
    with pytest.raises(ValueError, match=r"privileged=\['map'\] names no entry of the observation space"):
        Reporting.__init__(env := object.__new__(Reporting), ClockEnv())
        TensorVecEnv.__init__(env, 1, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), privileged=["map"])


# -- no waiting ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["Pendulum", "CartPoleBalance", "CartPoleSwingUp", "PointMass"])
def test_a_step_does_not_wait_for_the_gpu(kind: str) -> None:
    from sb3_diffusion.envs.tensor import make_tensor_env

    env = make_tensor_env(f"torch/{kind}-v0", 64, "cuda", max_episode_length=5)
    env.reset_tensor(random_phases=True)
    actions = th.zeros(64, *env.action_space.shape, device="cuda")  # type: ignore[misc]
    th.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            env.step_tensor(actions)
    finally:
        th.cuda.set_sync_debug_mode("default")
