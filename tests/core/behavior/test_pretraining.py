"""Imitation before experience: what is learned from data, what stays of it, and what fine-tuning makes of it."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_diffusion import DPPO, FPO, PPO, OfflineDataset, load_agent
from sb3_diffusion.core.reporting.metrics import TrainingDiverged
from sb3_diffusion.envs.tensor.observations import box
from sb3_diffusion.envs.tensor.torch_env import TorchVecEnv
from tests.golden_tools import close
from tests.helpers import flat_parameters

TWO_MODES = 0.5
SMALL: dict[str, Any] = {"net_arch": [64, 64], "time_dim": 16}


class Choice(TorchVecEnv):
    """Episodes of one step: the reward is one near the right of two equally usual actions."""

    def __init__(self, n_envs: int = 256):
        super().__init__(n_envs, box((2,)), box((1,), -1.0, 1.0), 1, "cpu")

    def initial_state(self, n: int) -> th.Tensor:
        return th.zeros(n, 2)

    def transition(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        reward = ((action[:, 0] - TWO_MODES).abs() < 0.2).float()
        return state, reward, th.ones(len(state), dtype=th.bool)


def demonstrations(n: int = 2000) -> OfflineDataset:
    rng = np.random.default_rng(0)
    actions = TWO_MODES * np.sign(rng.uniform(-1, 1, (n, 1))) + 0.05 * rng.normal(size=(n, 1))
    states = np.zeros((n, 2), np.float32)
    ends = np.ones(n, bool)
    spaces_: Any = {"observation_space": box((2,)), "action_space": spaces.Box(-1.0, 1.0, (1,), np.float32)}
    return OfflineDataset.from_arrays(states, actions.astype(np.float32), np.zeros(n), ends, ~ends, states, **spaces_)


def make(algorithm: Any, **kwargs: Any) -> Any:
    policy_kwargs = {**({} if algorithm is PPO else SMALL), **kwargs.pop("policy_kwargs", {})}
    settings = {"n_steps": 4, "seed": 0, "device": "cpu", "learning_rate": 1e-3, "gamma": 0.0, "normalize_observations": False}
    return algorithm("MlpPolicy", Choice(), policy_kwargs=policy_kwargs, **{**settings, **kwargs})


@pytest.fixture(scope="module")
def clone() -> Any:
    return make(DPPO, finetune_steps=4, policy_kwargs={"diffusion_steps": 8}).pretrain(demonstrations(), 2000, 128, 3e-3)


def drawn(model: Any, n: int = 4000) -> th.Tensor:
    th.manual_seed(0)
    with th.no_grad():
        return model.act(th.zeros(n, 2))[0][:, 0]


def test_a_clone_has_both_modes_and_little_else(clone: Any) -> None:
    actions = drawn(clone)
    assert abs(float((actions > 0).float().mean()) - 0.5) < 0.1
    assert float((actions.abs() - TWO_MODES).abs().lt(0.3).float().mean()) > 0.8  # the steps' own noise is 0.1


def test_the_frozen_part_is_the_clone_until_training_moves_the_rest(clone: Any, tmp_path: Any) -> None:
    actor: Any = clone.actor
    own = {name: value for name, value in actor.state_dict().items() if not name.startswith("clone.")}
    assert own.keys() == actor.clone.state_dict().keys()
    assert all(th.equal(value, actor.clone.state_dict()[name]) for name, value in own.items())
    assert not {id(p) for p in actor.clone.parameters()} & {id(p) for p in clone.parts()[0].parameters}
    clone.save(tmp_path / "clone")
    model: Any = DPPO.load(tmp_path / "clone", Choice(), device="cpu")
    frozen, moving = flat_parameters(model.actor.clone).clone(), flat_parameters(model.actor.denoiser).clone()
    model.learn(2 * 1024)
    assert th.equal(moving, flat_parameters(model.actor.denoiser))  # the value comes first
    model.learn(30 * 1024, reset_num_timesteps=False)
    assert th.equal(frozen, flat_parameters(model.actor.clone))
    assert not th.equal(moving, flat_parameters(model.actor.denoiser))
    assert model.rollout_buffer.fields["chain"].shape[2:] == (5, 1)
    actions = drawn(model)
    assert float((actions > 0).float().mean()) > 0.9
    assert float((actions.abs() > 0.8).float().mean()) < 0.1
    # who evaluates uses the same two parts (a public complaint: 90 % in training, 45 % afterwards)
    model.save(tmp_path / "tuned")
    seen = np.zeros((64, 2), np.float32)
    for loaded in (DPPO.load(tmp_path / "tuned", device="cpu"), load_agent(tmp_path / "tuned.zip", device="cpu")):
        assert np.array_equal(loaded.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0])
        close(drawn(loaded), actions, atol=1e-6)
        with th.no_grad():
            explored = loaded.policy.explore(th.zeros(4000, 2))[:, 0]  # type: ignore[operator]
        assert float((explored > 0).float().mean()) > 0.9


def test_first_ratios_are_one_behind_a_frozen_part(clone: Any) -> None:
    model: Any = make(DPPO, finetune_steps=4, policy_kwargs={"diffusion_steps": 8})
    model.policy.load_state_dict(clone.policy.state_dict())
    model.learn(1024)
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer)
    batch = model.rollout_buffer.rows(slice(None))
    log_prob = model.step_log_prob(batch.observations, batch.fields["chain"])
    close(log_prob.exp() / batch.fields["log_prob"].exp(), th.ones(1024, 4), atol=1e-4)


@pytest.mark.parametrize("algorithm", [FPO, PPO])
def test_other_actors_imitate_as_well(algorithm: Any) -> None:
    model = make(algorithm).pretrain(demonstrations(), 2000 if algorithm is FPO else 500, 128, 3e-3)
    actions = drawn(model)
    if algorithm is PPO:  # a Gaussian covers both modes at once
        assert abs(float(actions.mean())) < 0.1 and abs(float(actions.std()) - TWO_MODES) < 0.1
    else:
        assert float((actions.abs() - TWO_MODES).abs().lt(0.2).float().mean()) > 0.8
    model.learn(1024)


def test_statistics_of_the_data_stay() -> None:
    model = make(PPO, normalize_observations=True)
    data = demonstrations()
    model.pretrain(data, 3)
    before = model.actor.features_extractor.mean_.clone(), float(model.actor.features_extractor.count)
    model.learn(2048)
    assert th.equal(before[0], model.actor.features_extractor.mean_)
    assert before[1] == float(model.actor.features_extractor.count) == len(data)


@pytest.mark.parametrize("steps, words", [(0, "finetune_steps=0"), (9, "at most 8; a chain has 8 steps")])
def test_more_or_fewer_steps_than_there_are(steps: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(DPPO, finetune_steps=steps, policy_kwargs={"diffusion_steps": 8})


def test_evaluations_act_as_the_training_does() -> None:
    with pytest.raises(ValueError, match="evaluation_steps=3 would act without the frozen steps"):
        make(DPPO, finetune_steps=2, policy_kwargs={"diffusion_steps": 8, "evaluation_steps": 3})


def test_data_of_another_task_is_refused() -> None:
    n = 20
    ends = np.arange(n) == n - 1
    other = OfflineDataset.from_arrays(np.zeros((n, 3)), np.zeros((n, 1)), np.zeros(n), ends, ~ends, np.zeros((n, 3)))
    with pytest.raises(ValueError, match=r"observations of shape \(3,\), the environment of \(2,\)"):
        make(DPPO).pretrain(other, 1)


def test_an_imitation_that_diverges_says_so() -> None:
    with pytest.raises(TrainingDiverged, match="imitation_error became"):
        make(DPPO).pretrain(demonstrations(), 200, learning_rate=1e20)


def test_what_is_frozen_is_not_imitated_with() -> None:
    model = make(DPPO)
    model.actor.requires_grad_(False)
    with pytest.raises(ValueError, match=r"all of which is frozen; call model\.actor\.requires_grad_"):
        model.pretrain(demonstrations(), 2)
    layer = model.actor.denoiser.trunk.output.requires_grad_(True)
    before = {name: value.clone() for name, value in model.actor.state_dict().items()}
    model.pretrain(demonstrations(), 2)
    moved = [name for name, value in model.actor.state_dict().items() if not th.equal(value, before[name])]
    assert layer.weight.requires_grad and sorted(moved) == [f"denoiser.trunk.output.{name}" for name in ("bias", "weight")]
