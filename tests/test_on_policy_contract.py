"""What every on-policy algorithm of the taxonomy promises to a user of Stable-Baselines3, in tensors and in NumPy."""

import copy
import inspect
import io
import json
import pathlib
import zipfile
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO as StablePPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion import load_agent
from sb3_diffusion.checkpoints.trainings.callback import TrainingCheckpoints
from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from tests.cases import wrong_arguments
from tests.conftest import ON_POLICY
from tests.environments import PointEnv, vector_env
from tests.golden_tools import close
from tests.helpers import (
    act,
    all_finite,
    assert_identical,
    first_policy,
    flat_parameters,
    observations,
    to_tensors,
)
from tests.rollouts import N_ENVS, N_STEPS, ROLLOUT, make, tensor_env

Algorithm = type[OnPolicyDiffusion]


@pytest.fixture(params=ON_POLICY, ids=lambda method: method.zoo_name)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    """Every method that learns from what it did last."""
    return request.param.load()  # type: ignore[no-any-return]


# -- constructor ------------------------------------------------------------------------------------------------------


def test_signature_is_stable_baselines3s(algorithm: Algorithm) -> None:
    parameters = inspect.signature(algorithm).parameters
    left_out = {"vf_coef", "ent_coef", "use_sde", "sde_sample_freq", "rollout_buffer_class", "rollout_buffer_kwargs"}
    assert [name for name in inspect.signature(StablePPO).parameters if name not in parameters and name not in left_out] == []
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
    assert [name for name, p in parameters.items() if p.default is p.empty] == ["policy", "env"]
    assert list(parameters)[:3] == ["policy", "env", "learning_rate"] and list(parameters)[-1] == "_init_setup_model"


def test_every_parameter_is_documented(algorithm: Algorithm) -> None:
    manual = "".join(inspect.getdoc(cls) or "" for cls in algorithm.__mro__ if issubclass(cls, OnPolicyDiffusion))
    assert [name for name in inspect.signature(algorithm).parameters if f":param {name}:" not in manual] == []


def test_can_be_built_as_load_builds_it(algorithm: Algorithm) -> None:
    model = algorithm(policy=first_policy(algorithm), env=None, device="cpu", _init_setup_model=False)
    assert not hasattr(model, "actor") and not hasattr(model, "rollout_buffer")


def test_setup_can_run_twice_and_keeps_the_users_arguments(algorithm: Algorithm) -> None:
    model = make(algorithm)
    before = {name: getattr(model, name) for name in inspect.signature(algorithm).parameters if name in vars(model)}
    before = copy.copy(before)
    model._setup_model()
    for name in set(before) - {"policy", "env"}:
        assert getattr(model, name) is before[name], name
    model.learn(ROLLOUT)


@pytest.mark.parametrize(
    "policy, observation", [(0, "box"), (0, "dict"), ("CnnPolicy", "image"), ("MultiInputPolicy", "dict")]
)
def test_policy_names(algorithm: Algorithm, policy: Any, observation: str) -> None:
    name = policy or first_policy(algorithm).general_name
    model = make(algorithm, vector_env(2, observation=observation), policy=name)
    assert type(model.policy) is algorithm.policy_aliases[name]
    model.learn(16)
    assert all_finite(model)


BAD_ARGUMENTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"policy": "GausianPolicy"}, ["GausianPolicy", "MlpPolicy", "CnnPolicy", "MultiInputPolicy"]),
    ({"n_steps": 0}, ["n_steps=0", "at least 1"]),
    ({"n_epochs": 0}, ["n_epochs=0", "at least 1"]),
    ({"n_minibatches": 0}, ["n_minibatches=0", "at least 1"]),
    ({"batch_size": -3}, ["batch_size=-3", "at least 1"]),
    ({"gamma": 7}, ["gamma=7", "between 0 and 1"]),
    ({"gae_lambda": -0.1}, ["gae_lambda=-0.1", "one step ahead"]),
    ({"clip_range": -0.2}, ["clip_range=-0.2", "negative"]),
    ({"clip_range_vf": 0.0}, ["clip_range_vf=0.0", "no limit"]),
    ({"normalize_advantage": "rollout"}, ["normalize_advantage='rollout'", "minibatch"]),
    ({"timeout_bootstrap": "reset"}, ["timeout_bootstrap='reset'", "final_obs", "current"]),
    ({"value_learning_rate": -1e-3}, ["value_learning_rate=-0.001", "negative"]),
    ({"desired_kl": 0.0}, ["desired_kl=0.0", "schedules"]),
    ({"learning_rate_bounds": (1e-2, 1e-5)}, ["learning_rate_bounds=1e-05", "larger"]),
    ({"target_kl": -1.0}, ["target_kl=-1.0", "no limit"]),
    ({"max_grad_norm": 0.0}, ["max_grad_norm=0.0", "no clipping"]),
    ({"execution": "cuda_graph"}, ["cuda_graph", "device='cuda'", "'cpu'"]),
    ({"policy_kwargs": {"net_arc": [16]}}, ["net_arc", "net_arch"]),
    ({"policy_kwargs": {"networks": {}}}, ["networks", "requires"]),
    ({"policy_kwargs": {"critics": True}}, ["critics=True", "requires"]),
]


@pytest.mark.parametrize("kwargs, fragments", BAD_ARGUMENTS, ids=lambda value: str(value))
def test_a_bad_argument_is_named_with_its_remedy(algorithm: Algorithm, kwargs: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        make(algorithm, **copy.deepcopy(kwargs))
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


@pytest.mark.parametrize(
    "method, kwargs, fragments", wrong_arguments(ON_POLICY), ids=lambda value: getattr(value, "zoo_name", str(value))
)
def test_a_bad_argument_of_the_method_is_named(method: Any, kwargs: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        make(method.load(), **kwargs)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_a_misspelt_argument_is_named_with_a_suggestion(algorithm: Algorithm) -> None:
    with pytest.raises(TypeError, match=r"n_epoch.*n_epochs"):
        make(algorithm, n_epoch=3)


def test_spaces_that_are_not_supported(algorithm: Algorithm) -> None:
    with pytest.raises(AssertionError, match="only supports"):
        make(algorithm, gym.make("CartPole-v1"))


# -- acting ------------------------------------------------------------------------------------------------------------


def test_what_is_explored_is_what_a_rollout_records(algorithm: Algorithm) -> None:
    model = make(algorithm).learn(ROLLOUT)
    obs = to_tensors(model, observations(model.observation_space, 7))
    with th.no_grad():
        th.manual_seed(3)
        recorded, fields = model.act(obs)
        th.manual_seed(3)
        explored = model.policy.explore(obs)
    close(explored, recorded.clamp(-1.0, 1.0), atol=1e-5)
    assert recorded.shape == (7, model.actor.action_dim) and all(len(field) == 7 for field in fields.values())


def test_deterministic_actions_are_functions_of_the_observation(algorithm: Algorithm) -> None:
    model = make(algorithm).learn(ROLLOUT)
    obs = observations(model.observation_space, 6)
    before = th.get_rng_state()
    together = act(model, obs)
    assert th.equal(before, th.get_rng_state())
    alone = np.concatenate([act(model, obs[row : row + 1]) for row in range(6)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together).max() <= 2.0


def test_stochastic_actions_come_from_the_global_generator(algorithm: Algorithm) -> None:
    model = make(algorithm)
    obs = observations(model.observation_space)
    drawn = []
    for seed in (0, 0, 1):
        th.manual_seed(seed)
        drawn.append(act(model, obs, deterministic=False))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3


@pytest.mark.parametrize("kind", ["tensor", "numpy"])
def test_evaluation(algorithm: Algorithm, kind: str) -> None:
    model = make(algorithm, tensor_env() if kind == "tensor" else vector_env(2))
    env = tensor_env(3) if kind == "tensor" else vector_env(1)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=3)
    assert np.isfinite(mean)


# -- training ----------------------------------------------------------------------------------------------------------


def test_the_first_minibatch_sees_the_policy_that_acted(algorithm: Algorithm) -> None:
    model = make(algorithm, n_minibatches=1, n_epochs=1).learn(3 * ROLLOUT)  # observations have been standardised in between
    seen: list[dict[str, float]] = []
    loss = model.actor_loss

    def noted(batch: Any) -> Any:
        value, metrics = loss(batch)
        seen.append(metrics)
        return value, metrics

    model.actor_loss = noted
    model.learn(ROLLOUT, reset_num_timesteps=False)
    assert abs(float(seen[0]["approx_kl"])) < 1e-4
    assert float(seen[0]["clip_fraction"]) == 0.0


def test_the_seed_fixes_the_training(algorithm: Algorithm) -> None:
    first, second, other = (flat_parameters(make(algorithm, seed=s).learn(2 * ROLLOUT).policy) for s in (0, 0, 1))
    assert th.equal(first, second) and not th.equal(first, other)


def test_training_changes_every_network(algorithm: Algorithm) -> None:
    model = make(algorithm)
    before = {name: flat_parameters(network).clone() for name, network in model.policy.trained.items()}
    model.learn(ROLLOUT)
    assert set(before) >= {"actor", "value"}
    for name, network in model.policy.trained.items():
        assert not th.equal(before[name], flat_parameters(network)), name


def test_what_is_frozen_stays(algorithm: Algorithm) -> None:
    model = make(algorithm)
    model.value.requires_grad_(False)
    before = flat_parameters(model.value).clone()
    model.learn(ROLLOUT)
    assert th.equal(before, flat_parameters(model.value))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_ordinary_environments(algorithm: Algorithm, n_envs: int) -> None:
    model = make(algorithm, vector_env(n_envs)).learn(3 * n_envs * N_STEPS)
    assert model.num_timesteps == 3 * n_envs * N_STEPS and all_finite(model)
    assert {"r", "l", "t"} <= set(model.ep_info_buffer[0])


def test_learning_by_environment_id(algorithm: Algorithm) -> None:
    assert make(algorithm, "Pendulum-v1").learn(N_STEPS).num_timesteps == N_STEPS


def test_vec_normalize(algorithm: Algorithm) -> None:
    env = VecNormalize(vector_env(2))
    model = make(algorithm, env, normalize_observations=False).learn(64)
    assert all_finite(model) and env.ret_rms.count > 60


@pytest.mark.parametrize("shape", [(1,), (2,), (2, 3)])
def test_action_spaces(algorithm: Algorithm, shape: tuple[int, ...]) -> None:
    box = spaces.Box(np.full(shape, -1.5, np.float32), np.full(shape, 0.5, np.float32))
    env = PointEnv(action_space=box)
    model = make(algorithm, env).learn(2 * N_STEPS)
    assert all(box.contains(action) for action in env.executed) and len(env.executed) == 2 * N_STEPS
    action, _ = model.predict(model.observation_space.sample())
    assert action.shape == shape


def test_schedules(algorithm: Algorithm) -> None:
    model = make(algorithm, learning_rate=LinearSchedule(1e-3, 0.0, 1.0), clip_range=LinearSchedule(0.2, 0.1, 1.0))
    model.learn(4 * ROLLOUT)
    assert model.actor.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    assert float(model.clip) == pytest.approx(0.1)
    assert model.value.optimizer.param_groups[0]["lr"] == pytest.approx(model.value_learning_rate)


def test_adaptive_rates(algorithm: Algorithm) -> None:
    model = make(algorithm, desired_kl=1e-3).learn(2 * ROLLOUT)
    rates = [float(part.optimizer.param_groups[0]["lr"]) for part in model.parts()]
    assert rates[0] != 1e-3 and all(1e-5 <= rate <= 1e-2 for rate in rates)


def test_logged_quantities(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    model = make(algorithm, tensorboard_log=str(tmp_path))
    model.learn(ROLLOUT)
    names = model.logger.name_to_value
    expected = {"actor_loss", "value_loss", "approx_kl", "clip_fraction", "explained_variance", "n_updates", "learning_rate"}
    assert {f"train/{name}" for name in expected} <= set(names)
    assert (tmp_path / f"{algorithm.__name__}_1").is_dir()
    assert model.ep_info_buffer[0]["l"] <= 5.0


def test_callbacks(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    class Counting(BaseCallback):
        steps = rollouts = 0

        def _on_step(self) -> bool:
            self.steps += 1
            assert self.locals["rewards"].shape == (N_ENVS,)
            return self.steps < 2 * N_STEPS + 3

        def _on_rollout_end(self) -> None:
            self.rollouts += 1

    counting = Counting()
    evaluation = EvalCallback(tensor_env(2), n_eval_episodes=2, eval_freq=5, best_model_save_path=str(tmp_path), verbose=0)
    model = make(algorithm)
    model.learn(10 * ROLLOUT, callback=[counting, evaluation, CheckpointCallback(5, str(tmp_path))], progress_bar=True)
    assert (counting.steps, counting.rollouts) == (2 * N_STEPS + 3, 2)
    assert (tmp_path / "best_model.zip").is_file() and (tmp_path / "rl_model_20_steps.zip").is_file()


# -- saving and loading ------------------------------------------------------------------------------------------------


def test_saved_and_loaded_model_is_the_same(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    model = make(algorithm).learn(2 * ROLLOUT)
    obs = observations(model.observation_space)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    agent = load_agent(tmp_path / "model.zip", device="cpu")
    np.testing.assert_array_equal(act(loaded, obs), act(model, obs))
    np.testing.assert_array_equal(act(agent, obs), act(model, obs))
    assert_identical(model.get_parameters(), loaded.get_parameters())
    assert loaded.num_timesteps == 2 * ROLLOUT and loaded._n_updates == model._n_updates
    env = tensor_env(N_ENVS + 1)  # another number of environments
    loaded = algorithm.load(tmp_path / "model", env, device="cpu")
    loaded.learn(N_STEPS * (N_ENVS + 1), reset_num_timesteps=False)
    assert loaded.num_timesteps == 2 * ROLLOUT + N_STEPS * (N_ENVS + 1)


def test_a_file_holds_no_rollout_and_no_environment(algorithm: Algorithm) -> None:
    model, content = make(algorithm).learn(ROLLOUT), io.BytesIO()
    model.save(content)
    with zipfile.ZipFile(content) as archive:
        data = json.loads(archive.read("data"))
    assert not set(data) & {"rollout_buffer", "_tensor_env", "_last_obs", "actor", "value", "env", "clip", "randomness"}


def test_the_policy_alone_can_be_saved(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    model = make(algorithm).learn(ROLLOUT)
    model.policy.save(str(tmp_path / "policy"))
    loaded = type(model.policy).load(str(tmp_path / "policy"), device="cpu")
    obs = observations(model.observation_space)
    np.testing.assert_array_equal(act(loaded, obs), act(model, obs))


def test_the_environment_can_be_replaced(algorithm: Algorithm) -> None:
    model = make(algorithm).learn(ROLLOUT)
    model.set_env(tensor_env())
    model.learn(ROLLOUT, reset_num_timesteps=False)
    assert model.num_timesteps == 2 * ROLLOUT


@pytest.mark.parametrize("kind", ["tensor", "numpy"])
def test_a_resumed_training_equals_an_uninterrupted_one(algorithm: Algorithm, kind: str, tmp_path: pathlib.Path) -> None:
    def model() -> Any:
        return make(algorithm, tensor_env() if kind == "tensor" else vector_env(N_ENVS), desired_kl=1e-3)

    def checkpoints(resume: bool = False) -> TrainingCheckpoints:
        return TrainingCheckpoints(tmp_path, every=ROLLOUT, resume=resume, max_share=None, verbose=0)

    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == when:
                raise InterruptedError
            return True

    whole, when = model(), 2 * N_STEPS + 3
    whole.learn(4 * ROLLOUT)
    with pytest.raises(InterruptedError):
        model().learn(4 * ROLLOUT, callback=[Interrupt(), checkpoints()])
    resumed, when = model(), 0
    th.manual_seed(123)  # another process draws other numbers
    resumed.learn(4 * ROLLOUT, callback=[Interrupt(), checkpoints(resume=True)])
    assert resumed.num_timesteps == whole.num_timesteps
    assert_identical(whole.get_parameters(), resumed.get_parameters())
    assert [e["r"] for e in whole.ep_info_buffer] == [e["r"] for e in resumed.ep_info_buffer]
