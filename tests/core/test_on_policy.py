"""The training loop of on-policy methods: what it stores, what it makes of the ends of episodes, when it waits for whom."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_diffusion import PPO, load_agent
from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.envs.tensor.step import TensorStep
from sb3_diffusion.envs.tensor.tasks.pendulum import Pendulum
from sb3_diffusion.policies.features import RunningStandardizedExtractor
from tests.environments import vector_env
from tests.golden_tools import close
from tests.helpers import watched

SMALL: dict[str, Any] = {"net_arch": [8]}


class Clock(TensorVecEnv):
    """
    Environments that show their time, and a number that marks the end of an episode. Rewards, flags and observations are
    tensors that the simulator uses again.
    """

    def __init__(self, n_envs: int = 3, ends: str = "truncated", tells: bool = True):
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        super().__init__(n_envs, box, spaces.Box(-1.0, 1.0, (1,), np.float32), "cpu")
        self.ends, self.tells = ends, tells
        self.time = th.zeros(n_envs)
        self.reward = th.zeros(n_envs)

    def reset_simulator(self, seed: int | None) -> Any:
        self.time = th.arange(self.num_envs).float()
        return self.seen()

    def seen(self, final: bool = False) -> th.Tensor:
        return th.stack((self.time, th.full_like(self.time, float(final))), 1)

    def step_simulator(self, actions: th.Tensor) -> TensorStep:
        self.time = self.time + 1.0
        self.reward.copy_(self.time)
        done = self.time % 5 == 0
        final = self.seen(final=True)
        self.time = th.where(done, 100.0 * self.time, self.time)  # times of another episode are far away
        none = th.zeros_like(done)
        return TensorStep(
            observation=self.seen(),
            reward=self.reward.clone(),
            terminated=done if self.ends in ("terminated", "both") else none,
            truncated=done if self.ends in ("truncated", "both") else none,
            final_observation=final if self.tells else None,
            final_valid=done if self.tells else none,
        )


class OnlyNumpy(VecEnvWrapper):
    """An environment of which only the NumPy face can be seen."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def rollout(env: VecEnv, n_steps: int = 8, **kwargs: Any) -> Any:
    frozen = {"normalize_observations": False, "random_phases": False}
    settings = {"n_steps": n_steps, "policy_kwargs": SMALL, "seed": 0, "device": "cpu", **frozen, **kwargs}
    model = PPO("GaussianPolicy", env, learning_rate=0.0, value_learning_rate=0.0, n_epochs=1, **settings)
    return model.learn(n_steps * env.num_envs)


def following(model: Any) -> th.Tensor:
    """The value of the future that the advantages contain."""
    buffer = model.rollout_buffer
    done = buffer["terminated"] | buffer["truncated"]
    advantages = buffer["returns"] - buffer["values"]
    carried = th.cat((advantages[1:], th.zeros_like(advantages[:1])))
    errors = advantages - model.gamma * model.gae_lambda * carried * ~done
    return (errors - buffer["rewards"] + buffer["values"]) / model.gamma


@pytest.mark.parametrize("rule", ["final_obs", "current", "next_obs", "off"])
@pytest.mark.parametrize("tells", [True, False])
def test_a_time_out_is_bootstrapped_from_the_right_observation(tells: bool, rule: str) -> None:
    model = rollout(Clock(tells=tells), timeout_bootstrap=rule)
    buffer = model.rollout_buffer
    ended = buffer["truncated"]
    assert ended.any() and not buffer["terminated"].any()
    seen = buffer["observations"][ended]
    last = th.stack((seen[:, 0] + 1.0, th.ones(len(seen))), 1)
    of_the_next_episode = th.stack((100.0 * last[:, 0], th.zeros(len(seen))), 1)
    with th.no_grad():
        candidates = {
            "final_obs": model.value(last if tells else seen),
            "current": model.value(seen),
            "next_obs": model.value(of_the_next_episode),
            "off": th.zeros(len(seen)),
        }
    close(following(model)[ended], candidates[rule], atol=1e-3)
    if rule != "next_obs":  # such an adapter would be noticed
        assert (candidates[rule] - candidates["next_obs"]).abs().max() > 1.0


@pytest.mark.parametrize("ends", ["terminated", "both"])
def test_a_termination_has_no_future(ends: str) -> None:
    model = rollout(Clock(ends=ends))
    buffer = model.rollout_buffer
    assert buffer["terminated"].any() and not buffer["truncated"].any()
    close(following(model)[buffer["terminated"]], th.zeros(int(buffer["terminated"].sum())), atol=1e-3)


def test_tensors_that_a_simulator_uses_again_are_stored_as_they_were() -> None:
    model = rollout(Clock())
    rewards = model.rollout_buffer["rewards"]
    assert rewards[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 501.0, 502.0, 503.0]


def test_a_rollout_is_the_same_through_the_face_of_numpy() -> None:
    direct = rollout(Pendulum(4, "cpu", max_episode_length=5))
    adapted = rollout(OnlyNumpy(Pendulum(4, "cpu", max_episode_length=5)))
    names = ("observations", "actions", "rewards", "terminated", "truncated", "values", "returns", "advantages")
    for name in names:
        close(direct.rollout_buffer[name].float(), adapted.rollout_buffer[name].float(), atol=1e-6)
    assert direct.rollout_buffer["truncated"].any()
    told = [[episode["r"] for episode in model.ep_info_buffer] for model in (direct, adapted)]
    assert len(told[0]) == len(told[1]) == 4 and np.isclose(np.mean(told[0]), np.mean(told[1]))


def test_statistics_of_observations_are_frozen_during_a_rollout_and_its_update() -> None:
    model = PPO("GaussianPolicy", Pendulum(8, "cpu"), n_steps=6, policy_kwargs=SMALL, seed=0, device="cpu")
    seen: list[th.Tensor] = []
    extractors: list[Any] = [part for part in model.policy.modules() if isinstance(part, RunningStandardizedExtractor)]
    assert len(extractors) == 2

    def statistics() -> th.Tensor:
        return th.cat([th.cat((one.mean_, one.std_, one.count.float().view(1))) for one in extractors])

    model.actor_loss = watched(model.actor_loss, lambda batch: seen.append(statistics()))  # type: ignore[method-assign]
    model.act = watched(model.act, lambda observed: seen.append(statistics()))  # type: ignore[method-assign]
    model.learn(48)
    assert len(seen) == 6 + 20 and all(th.equal(one, seen[0]) for one in seen)
    observed = model.rollout_buffer.flat("observations")
    close(extractors[0].mean_, observed.mean(0), atol=1e-6)
    close(extractors[0].std_, observed.std(0, correction=0), atol=1e-6)
    everything = [observed.clone()]
    for _ in range(3):
        model.learn(48, reset_num_timesteps=False)
        everything.append(model.rollout_buffer.flat("observations").clone())
    close(extractors[1].mean_, th.cat(everything).mean(0), atol=1e-5)
    close(extractors[1].std_, th.cat(everything).std(0, correction=0), atol=1e-5)
    assert float(extractors[1].count) == 4 * 48


def test_an_entry_that_never_changes_is_only_centred() -> None:
    model = rollout(Clock(), normalize_observations=True)
    assert not model.policy.actor.features_extractor.std_.lt(1e-3).any()
    assert model.policy.actor.features_extractor.std_[1] == 1.0


def test_standardising_twice_is_pointed_out() -> None:
    env = VecNormalize(vector_env(2))
    with pytest.warns(UserWarning, match="normalize_observations=False"):
        PPO("GaussianPolicy", env, policy_kwargs=SMALL, device="cpu")


@pytest.mark.parametrize(
    "settings, size, batch",
    [({}, 2048, 512), ({"n_steps": 8}, 16, 4), ({"n_steps": 8, "batch_size": 5}, 16, 5), ({"n_minibatches": 3}, 2048, 682)],
)
def test_sizes_of_rollouts_and_minibatches(settings: dict[str, Any], size: int, batch: int) -> None:
    model = PPO("GaussianPolicy", vector_env(2), n_epochs=1, policy_kwargs=SMALL, device="cpu", **settings)
    assert model.rollout_buffer.size == size
    seen: list[int] = []
    model.update = watched(model.update, lambda rows, *_: seen.append(len(rows.actions)))  # type: ignore[method-assign]
    model.learn(size)
    assert seen == [batch] * (size // batch)


def test_a_minibatch_larger_than_a_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=17 must be at most 16; a rollout has 16"):
        PPO("GaussianPolicy", vector_env(2), n_steps=8, batch_size=17, policy_kwargs=SMALL, device="cpu")
    with pytest.raises(ValueError, match=r"n_minibatches=17 must be at most 16"):
        PPO("GaussianPolicy", vector_env(2), n_steps=8, n_minibatches=17, policy_kwargs=SMALL, device="cpu")


def test_a_thousand_environments_have_short_rollouts() -> None:
    model = PPO("GaussianPolicy", Pendulum(1024, "cpu"), policy_kwargs=SMALL, device="cpu")
    assert model.rollout_buffer.n_steps == 24


def test_first_episodes_begin_in_the_middle() -> None:
    env = Pendulum(64, "cpu")
    PPO("GaussianPolicy", env, n_steps=1, policy_kwargs=SMALL, seed=0, device="cpu").learn(64)
    assert len(set(env.episode_length_buf.tolist())) > 30
    PPO("GaussianPolicy", env, n_steps=1, policy_kwargs=SMALL, seed=0, random_phases=False, device="cpu").learn(64)
    assert env.episode_length_buf.tolist() == [1] * 64


def test_target_kl_ends_the_updates_of_a_rollout() -> None:
    settings: dict[str, Any] = {"n_steps": 16, "policy_kwargs": SMALL, "seed": 0, "device": "cpu", "learning_rate": 0.1}
    free = PPO("GaussianPolicy", Pendulum(4, "cpu"), **settings).learn(64)
    held = PPO("GaussianPolicy", Pendulum(4, "cpu"), target_kl=0.01, **settings).learn(64)
    assert free._n_updates == 20 and held._n_updates < 20


def test_adapted_rates_go_on_where_they_were() -> None:
    model = PPO("GaussianPolicy", Pendulum(4, "cpu"), n_steps=16, desired_kl=0.01, policy_kwargs=SMALL, seed=0, device="cpu")
    model.learn(64)
    rates = [float(part.optimizer.param_groups[0]["lr"]) for part in model.parts()]
    assert rates[0] not in (1e-4, 1e-5, 1e-2)
    assert list(model._set_learning_rates().values()) == rates


def test_masked_time_outs_teach_the_value_nothing() -> None:
    model = rollout(Clock(), mask_timeouts=True)
    batch = model.rollout_buffer.rows(slice(None))
    returns = batch.returns.clone().requires_grad_()
    model.value_loss(batch._replace(returns=returns))[0].backward()
    assert (returns.grad[batch.truncated] == 0.0).all() and (returns.grad[~batch.truncated] != 0.0).all()


def test_values_move_no_further_than_they_may() -> None:
    model = rollout(Clock(), clip_range_vf=0.1)
    batch = model.rollout_buffer.rows(slice(None))
    values = batch.values + th.linspace(-1.0, 1.0, len(batch.values))
    values.requires_grad_()
    model.value = lambda observations: values
    far = batch._replace(returns=batch.values)  # they are right already
    loss, _ = model.value_loss(far)
    close(loss, (values - batch.values).square().mean())
    beyond = batch._replace(returns=batch.values + 10.0)
    values.grad = None
    model.value_loss(beyond)[0].backward()
    assert (values.grad[(values - batch.values) > 0.11] == 0.0).all()


def test_nothing_of_what_an_environment_returns_may_be_infinite() -> None:
    class Infinite(Clock):
        def step_simulator(self, actions: th.Tensor) -> TensorStep:
            return super().step_simulator(actions)._replace(reward=th.full((3,), float("inf")))

    with pytest.raises(FloatingPointError, match="non-finite rewards: check what the environment returns"):
        rollout(Infinite())


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device, whose host must not wait")
def test_a_rollout_does_not_wait_for_the_device() -> None:
    env = Pendulum(64, "cuda")
    model = PPO("GaussianPolicy", env, n_steps=4, policy_kwargs=SMALL, device="cuda").learn(512)
    callback = model._init_callback(None)
    observation = env.last_observation
    th.cuda.set_sync_debug_mode("error")
    try:
        with th.no_grad():
            for step in range(4):
                actions, fields = model.act(observation)
                happened = env.step_tensor(model._executed(actions))
                model.rollout_buffer.add(step, observations=observation, actions=actions, **model._told(happened))
                model.rollout_buffer.add_fields(step, fields)
                observation = happened.observation
    finally:
        th.cuda.set_sync_debug_mode("default")
    assert callback is not None


class Blindfolded(Pendulum):
    """A pendulum whose speed is known to the simulator alone."""

    def __init__(self, n_envs: int, privileged: tuple[str, ...] = ("speed",)):
        super().__init__(n_envs, "cpu")
        box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = spaces.Dict({"angle": spaces.Box(-1.0, 1.0, (2,), np.float32), "speed": box})
        self.privileged = privileged

    def observe(self, state: th.Tensor) -> Any:
        seen = super().observe(state)
        assert isinstance(seen, th.Tensor)
        return {"angle": seen[:, :2], "speed": seen[:, 2:]}


def test_the_value_sees_what_the_actor_must_not(tmp_path: Any) -> None:
    model: Any = PPO("GaussianPolicy", Blindfolded(4), n_steps=8, policy_kwargs=SMALL, seed=0, device="cpu").learn(64)
    seen = model.env.observation_space.sample()
    other = {**seen, "speed": seen["speed"] + 3.0}
    actions = [model.predict(observed, deterministic=True)[0] for observed in (seen, other)]
    assert np.array_equal(*actions)
    with th.no_grad():
        values = [model.value({k: th.as_tensor(v).unsqueeze(0) for k, v in o.items()}) for o in (seen, other)]
    assert not th.equal(*values)
    # on the robot nobody knows the rest
    assert np.array_equal(model.predict({"angle": seen["angle"]}, deterministic=True)[0], actions[0])
    model.save(tmp_path / "agent")
    for loaded in (PPO.load(tmp_path / "agent", device="cpu"), load_agent(tmp_path / "agent.zip", device="cpu")):
        assert np.array_equal(loaded.predict(other, deterministic=True)[0], actions[0])


def test_entries_that_do_not_exist_cannot_be_privileged() -> None:
    with pytest.raises(ValueError, match=r"privileged=\['sped'\].*\['angle', 'speed'\]"):
        PPO("GaussianPolicy", Blindfolded(2, ("sped",)), policy_kwargs=SMALL, device="cpu")
    with pytest.raises(ValueError, match="leave others"):
        PPO("GaussianPolicy", Blindfolded(2, ("speed", "angle")), policy_kwargs=SMALL, device="cpu")
