"""What happens inside ``train()``: delays, targets, gradients, bootstrapping, synchronisation, failure, execution modes."""

import copy
import inspect
import os
import pathlib
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import MetricLog, TrainingDiverged
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.policies.parts import own_parameters
from tests.cases import case_of
from tests.environments import PointEnv
from tests.helpers import (
    act,
    all_finite,
    assert_identical,
    flat_parameters,
    make,
    make_filled,
    observations,
    parameters,
    sample_batch,
    with_logger,
)

Algorithm = type[OffPolicyDiffusion]


# -- delays and targets -----------------------------------------------------------------------------------------------


def test_policy_delay_counts_updates_across_calls(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    model = make_filled(algorithm, policy_delay=3)
    with_actor = []
    for gradient_steps in (1, 1, 1, 2, 1, 4):  # updates 1, 2, 3 | 4-5, 6 | 7-10
        actor, critic = flat_parameters(model.actor), flat_parameters(model.critic)
        model.train(gradient_steps, 8)
        with_actor.append(not th.equal(flat_parameters(model.actor), actor))
        assert not th.equal(flat_parameters(model.critic), critic)
    assert with_actor == [False, False, True, False, True, True]
    assert model._n_updates == 10

    model.save(tmp_path / "model")
    loaded = with_logger(algorithm.load(tmp_path / "model", device="cpu"))  # the count survives
    loaded.replay_buffer = model.replay_buffer
    before = flat_parameters(loaded.actor)
    loaded.train(1, 8)
    assert th.equal(flat_parameters(loaded.actor), before)
    loaded.train(1, 8)
    assert not th.equal(flat_parameters(loaded.actor), before)


def test_the_actor_is_updated_once_per_delay(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_filled(algorithm, policy_delay=2)
    calls: list[int] = []
    actor_loss = model.actor_loss

    def spy(batch: Batch) -> Any:
        calls.append(model._n_updates)
        return actor_loss(batch)

    monkeypatch.setattr(model, "actor_loss", spy)
    model.train(5, 8)
    model.train(1, 8)
    assert calls == [2, 4, 6]


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_target_critics_are_moving_averages(algorithm: Algorithm, tau: float) -> None:
    model = make_filled(algorithm, tau=tau, **case_of(algorithm).with_targets)
    th.testing.assert_close(flat_parameters(model.critic_target), flat_parameters(model.critic), rtol=0.0, atol=0.0)
    for _ in range(2):
        before = flat_parameters(model.critic_target)
        model.train(1, 8)
        expected = before + tau * (flat_parameters(model.critic) - before)
        assert not th.equal(expected, before)
        th.testing.assert_close(flat_parameters(model.critic_target), expected)
    assert not any(parameter.requires_grad for parameter in model.critic_target.parameters())


# -- gradients --------------------------------------------------------------------------------------------------------


def clear_gradients(model: Any) -> None:
    for parameter in model.policy.parameters():
        parameter.grad = None


def has_gradient(parameters_: Any) -> list[bool]:
    return [parameter.grad is not None and bool(parameter.grad.abs().sum() > 0.0) for parameter in parameters_]


@pytest.mark.parametrize("share", [False, True])
def test_the_actors_loss_reaches_the_actor_alone(algorithm: Algorithm, share: bool) -> None:
    targets = case_of(algorithm).with_targets
    model = make_filled(algorithm, PointEnv("image"), policy_kwargs={"share_features_extractor": share}, **targets)
    batch = sample_batch(model)
    clear_gradients(model)
    model.actor_loss(batch)[0].backward(inputs=own_parameters(model.actor))
    assert all(parameter.grad is None for parameter in [*own_parameters(model.critic), *model.critic_target.parameters()])
    assert all(has_gradient(own_parameters(model.actor)))

    clear_gradients(model)
    model.critic_loss(batch)[0].backward(inputs=own_parameters(model.critic))
    assert all(parameter.grad is None for parameter in [*own_parameters(model.actor), *model.critic_target.parameters()])
    assert all(has_gradient(own_parameters(model.critic)))


def test_an_update_of_the_actor_leaves_the_critics_gradients_alone(
    algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_filled(algorithm, policy_delay=1, **case_of(algorithm).with_targets)
    after_critic_step: list[list[th.Tensor]] = []
    actor_loss = model.actor_loss

    def spy(batch: Batch) -> Any:
        after_critic_step.append([p.grad.clone() for p in own_parameters(model.critic) if p.grad is not None])
        return actor_loss(batch)

    monkeypatch.setattr(model, "actor_loss", spy)
    model.train(3, 8)
    assert all(parameter.grad is None for parameter in model.critic_target.parameters())
    assert_identical([parameter.grad for parameter in own_parameters(model.critic)], after_critic_step[-1])


# -- bootstrapping ----------------------------------------------------------------------------------------------------


def step_in_episode(batch: Batch) -> np.ndarray:
    assert isinstance(batch.observations, th.Tensor)
    return np.rint(batch.observations[:, 2].numpy() * 10.0).astype(int)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_only_terminal_transitions_have_no_future(algorithm: Algorithm, n_steps: int) -> None:
    gamma = 0.9
    terminating = make_filled(algorithm, PointEnv(terminate_after=5), gamma=gamma, n_steps=n_steps)
    batch = sample_batch(terminating, 300)
    steps = step_in_episode(batch)
    assert set(steps) == {0, 1, 2, 3, 4}
    np.testing.assert_allclose(batch.discounts.numpy(), np.where(steps + n_steps < 5, gamma**n_steps, 0.0), rtol=1e-6)

    truncating = make_filled(algorithm, PointEnv(truncate_after=5), gamma=gamma, n_steps=n_steps)
    batch = sample_batch(truncating, 300)
    steps = step_in_episode(batch)
    assert set(steps) == {0, 1, 2, 3, 4}
    np.testing.assert_allclose(batch.discounts.numpy(), gamma ** np.minimum(n_steps, 5 - steps), rtol=1e-6)


@pytest.mark.parametrize("end", ["terminate_after", "truncate_after"])
def test_the_value_of_a_terminal_transition_is_its_reward(algorithm: Algorithm, end: str) -> None:
    env = PointEnv(**{end: 1})  # type: ignore[arg-type]
    model = make_filled(algorithm, env, **case_of(algorithm).with_targets)
    batch = sample_batch(model)

    def critic_loss(factor: float) -> float:
        twin = copy.deepcopy(model.policy)
        losses = model.critic_loss
        with th.no_grad():
            for parameter in model.critic_target.parameters():
                parameter.mul_(factor)
        th.manual_seed(0)
        loss = float(losses(batch)[0].detach())
        model.policy.load_state_dict(twin.state_dict())
        return loss

    # the probabilities that a categorical critic projects add up to one but for rounding
    same = pytest.approx(critic_loss(3.0), rel=1e-6)
    assert (critic_loss(1.0) == same) == (end == "terminate_after")


@pytest.mark.parametrize("action_dim", [1, 21])
def test_one_and_many_action_dimensions(algorithm: Algorithm, action_dim: int) -> None:
    env = PointEnv(action_space=spaces.Box(-1.0, 1.0, (action_dim,), np.float32))
    every_update = case_of(algorithm).every_update
    model = make_filled(algorithm, env, **every_update)
    before = flat_parameters(model.actor)
    model.train(2, 8)
    assert not th.equal(flat_parameters(model.actor), before)
    for deterministic in (False, True):
        actions = act(model, observations(env.observation_space), deterministic=deterministic)
        assert actions.shape == (6, action_dim) and np.isfinite(actions).all() and np.abs(actions).max() <= 1.0


def test_one_of_everything(algorithm: Algorithm) -> None:
    counts = [name for name in inspect.signature(algorithm.__init__).parameters if name.startswith("n_") and name != "n_atoms"]
    model = make_filled(algorithm, batch_size=1, **dict.fromkeys(counts, 1))
    model.train(4, 1)
    # a single candidate is no better than the average, so that QVPO has nothing to learn
    assert th.isfinite(flat_parameters(model.policy)).all()
    assert act(model, observations(model.observation_space, n=1)).shape == (1, 2)


def test_actions_outside_the_box_are_clipped_in_the_batch(algorithm: Algorithm) -> None:
    model = make_filled(algorithm)
    model.replay_buffer.actions[:] = 1.5
    assert float(sample_batch(model).actions.max()) == 1.0


# -- synchronisation --------------------------------------------------------------------------------------------------

READERS = ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "__index__")


def count_reads(monkeypatch: pytest.MonkeyPatch, model: Any, gradient_steps: int) -> Counter[str]:
    counts: Counter[str] = Counter()

    def counted(name: str) -> Any:
        original = getattr(th.Tensor, name)

        def read(self: th.Tensor, *args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(self, *args, **kwargs)

        return read

    with monkeypatch.context() as patch:
        for name in READERS:
            patch.setattr(th.Tensor, name, counted(name))
        model.train(gradient_steps, 8)
    return counts


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_train_reads_tensors_once_per_call(
    algorithm: Algorithm, max_grad_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_update = case_of(algorithm).every_update
    model = make_filled(algorithm, policy_delay=1, max_grad_norm=max_grad_norm, **every_update)
    few, many = count_reads(monkeypatch, model, 2), count_reads(monkeypatch, model, 12)
    assert few == many
    assert few.total() == 1


# -- failure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["rewards", "observations", "next_observations"])
def test_a_non_finite_transition_stops_training(algorithm: Algorithm, place: str, value: float) -> None:
    model = make_filled(algorithm, **case_of(algorithm).every_update)
    model.train(3, 8)
    getattr(model.replay_buffer, place)[:] = value
    with pytest.raises(TrainingDiverged) as caught:
        model.train(4, 8)
    message = str(caught.value)
    name = message.split()[0]
    assert name in ("critic_loss", "q_mean") and " became " in message
    assert f"at update 4 (timestep {model.num_timesteps})" in message
    assert f"non-finite {place}:" in message and "check what the environment returns" in message
    assert isinstance(caught.value, FloatingPointError)


def test_one_bad_row_among_many_is_found(algorithm: Algorithm) -> None:
    model = make_filled(algorithm)
    model.replay_buffer.rewards[7] = np.nan
    with pytest.raises(TrainingDiverged, match="non-finite rewards"):
        model.train(50, 8)


def test_a_non_finite_dict_observation_is_named(algorithm: Algorithm) -> None:
    model = make_filled(algorithm, PointEnv("dict"))
    model.replay_buffer.next_observations["point"][:] = np.nan
    with pytest.raises(TrainingDiverged, match=r"non-finite next_observations\['point'\]"):
        model.train(2, 8)


@pytest.mark.parametrize("network", ["actor", "critic"])
def test_diverged_weights_stop_training(algorithm: Algorithm, network: str) -> None:
    model = make_filled(algorithm, policy_delay=1, **case_of(algorithm).every_update)
    with th.no_grad():
        next(getattr(model, network).parameters()).fill_(np.nan)
    with pytest.raises(TrainingDiverged, match=r"The replay buffer is finite.*learning rate"):
        model.train(2, 8)


def test_learn_stops_with_the_named_error(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    class BrokenSensor(PointEnv):
        def observe(self) -> Any:
            return super().observe() * (np.nan if self.n_steps == 7 else 1.0)

    model = make(algorithm, BrokenSensor())
    with pytest.raises(TrainingDiverged, match="non-finite"):
        model.learn(200, callback=CheckpointCallback(5, str(tmp_path)))
    assert not all_finite(model)
    for path in tmp_path.iterdir():
        assert all_finite(algorithm.load(path, device="cpu")), path


# -- execution modes --------------------------------------------------------------------------------------------------


def run_updates(algorithm: Algorithm, execution: str, device: str = "cpu", n_updates: int = 8) -> Any:
    settings: dict[str, Any] = {"policy_delay": 2, "max_grad_norm": 1.0, **case_of(algorithm).every_update}
    policy_kwargs = {"diffusion_steps": 2, "net_arch": [8], "state_arch": [4], "time_dim": 4}
    model = make_filled(algorithm, execution=execution, device=device, policy_kwargs=policy_kwargs, **settings)
    th.manual_seed(1)
    np.random.seed(1)
    model.train(n_updates, 8)
    return model


COMPILES = pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "default",
    reason="PyTorch 2.13 generates C++ for ATEN_CPU_CAPABILITY=default that does not compile; trainings go on eagerly",
)


def assert_same_training(left: Any, right: Any) -> None:
    for name, value in parameters(left.policy).items():
        th.testing.assert_close(parameters(right.policy)[name], value, rtol=1e-5, atol=1e-5)
    for name, number in left.logger.name_to_value.items():
        assert right.logger.name_to_value[name] == pytest.approx(number, rel=1e-4, abs=1e-5), name


def test_auto_is_eager(algorithm: Algorithm) -> None:
    assert_identical(run_updates(algorithm, "auto").get_parameters(), run_updates(algorithm, "eager").get_parameters())


@pytest.mark.expensive
@COMPILES
def test_compiled_updates_equal_eager_ones(algorithm: Algorithm) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        compiled = run_updates(algorithm, "compile")
    assert_same_training(run_updates(algorithm, "eager"), compiled)


def test_without_a_working_compiler_updates_run_eagerly(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[Any] = []

    def broken_compile(function: Any, **kwargs: Any) -> Any:
        def run(*args: Any) -> Any:
            attempts.append(function)
            raise th._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("\nno C++ compiler"), None)

        return run

    monkeypatch.setattr(th, "compile", broken_compile)
    with pytest.warns(UserWarning, match="torch.compile failed, continuing eagerly: .*no C\\+\\+ compiler") as caught:
        model = run_updates(algorithm, "compile")
    assert len(attempts) == len([w for w in caught if "torch.compile failed" in str(w.message)]) == 2  # once per loss
    assert_identical(model.get_parameters(), run_updates(algorithm, "eager").get_parameters())


def test_without_a_compiler_of_gradients_updates_run_eagerly(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[Any] = []

    class Uncompiled(th.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: th.Tensor) -> th.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
            raise th._inductor.exc.CppCompileError(["g++", "gradient.cpp"], "unknown type name")

    def half_compile(function: Any, **kwargs: Any) -> Any:
        def run(*args: Any) -> Any:
            attempts.append(function)
            loss, logged = function(*args)
            return Uncompiled.apply(loss), logged

        return run

    monkeypatch.setattr(th, "compile", half_compile)
    with pytest.warns(UserWarning, match=r"torch.compile failed, continuing eagerly: C\+\+ compile error") as caught:
        model = run_updates(algorithm, "compile")
    assert len(attempts) == len([w for w in caught if "torch.compile failed" in str(w.message)]) == 2  # once per loss
    assert_identical(model.get_parameters(), run_updates(algorithm, "eager").get_parameters())


def test_errors_in_a_compiled_loss_are_not_swallowed(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", lambda function, **kwargs: function)
    monkeypatch.setattr(algorithm, "critic_loss", lambda self, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError), warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")  # the compiler is not blamed for it
        run_updates(algorithm, "compile")


def test_compiled_model_can_be_saved(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    model = make(algorithm, execution="compile")  # nothing is compiled before the first update
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert loaded.execution == "compile"
    assert set(loaded.get_parameters()["policy"]) == set(make(algorithm).get_parameters()["policy"])
    assert algorithm.load(tmp_path / "model", device="cpu", execution="eager").execution == "eager"


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("execution", ["compile", "cuda_graph"])
def test_execution_modes_agree_on_cuda(algorithm: Algorithm, execution: str) -> None:
    left, right = (run_updates(algorithm, mode, "cuda", n_updates=12) for mode in ("eager", execution))
    assert_same_training(left, right)


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graph_follows_the_learning_rate_and_can_be_saved(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    model = run_updates(algorithm, "cuda_graph", "cuda", n_updates=12)
    model.lr_schedule = model.actor_lr_schedule = model.critic_lr_schedule = lambda _: 0.0
    before = flat_parameters(model.actor), flat_parameters(model.critic)
    model.train(4, 8)
    assert th.equal(flat_parameters(model.actor), before[0]) and th.equal(flat_parameters(model.critic), before[1])
    model.save(tmp_path / "model")
    on_cpu = algorithm.load(tmp_path / "model", device="cpu", execution="eager")
    th.testing.assert_close(flat_parameters(on_cpu.actor), before[0].cpu())
    assert all_finite(on_cpu)


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
def test_acting_by_cuda_graph_follows_the_training(algorithm: Algorithm) -> None:
    """The same random numbers give the same actions, before and after the weights have changed."""
    model = run_updates(algorithm, "cuda_graph", "cuda", n_updates=2)
    observation = th.as_tensor(model.observation_space.sample(), device="cuda").unsqueeze(0)
    model.policy.set_training_mode(False)
    act = model.policy.explore_graph
    for _ in range(2):
        with th.no_grad():
            for _ in range(6):
                act(observation)
            th.manual_seed(0)
            graph = act(observation)
            th.manual_seed(0)
            eager = model.policy.explore(observation)
        th.testing.assert_close(graph, eager, rtol=0.0, atol=1e-4)
        model.train(3, 8)
        model.policy.set_training_mode(False)


def test_updates_without_metrics_have_no_means() -> None:
    log = MetricLog(first_update=1)
    log.append({})
    assert log.means("", lambda untrained: "") == {}
