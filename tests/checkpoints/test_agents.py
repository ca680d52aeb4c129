"""Agents that are loaded without running anything in the file: what comes back, and what is refused."""

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

import sb3_diffusion
from sb3_diffusion import DPMD, QSM, load_agent, load_normalization, register_method, save_agent, taxonomy
from sb3_diffusion.checkpoints.agents import described_algorithm, why_unsafe
from sb3_diffusion.checkpoints.plain_spaces import space_from_plain, space_to_plain
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.networks.backbones import BACKBONES
from sb3_diffusion.taxonomy import BASELINES, algorithm_name, available_methods, load_algorithm
from tests.cases import case_of
from tests.environments import OBSERVATIONS, PointEnv, vector_env
from tests.helpers import BatchNormExtractor, CautiousPolicy, act, assert_identical, make, observations

Edit = Callable[[dict[str, bytes]], dict[str, bytes]]


def baseline(cls: type[BaseAlgorithm], env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> BaseAlgorithm:
    rollout: dict[str, Any] = {"n_steps": 16, "batch_size": 16} if cls is PPO else {"n_steps": 16}
    if cls not in (PPO, A2C):
        rollout = {"learning_starts": 10, "batch_size": 8, "buffer_size": 100}
    options = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu", **rollout, **kwargs}
    return cls(policy, PointEnv() if env is None else env, **options)  # type: ignore[arg-type]


def same_actions(left: Any, right: Any) -> bool:
    batch = observations(left.observation_space)
    return np.array_equal(act(left, batch), act(right, batch))


def optimizer_states(model: Any) -> list[int]:
    return [len(state["state"]) for name, state in model.get_parameters().items() if name.endswith("optimizer")]


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def saved(value: Any) -> bytes:
    content = io.BytesIO()
    th.save(value, content)
    return content.getvalue()


def description(path: Path) -> dict[str, Any]:
    return json.loads(members_of(path)["sb3_diffusion.json"])


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved agent that has trained a little, with normalised observations."""
    model = make(QSM, VecNormalize(vector_env(1)), replay_buffer_kwargs={"storage": "host"}).learn(20)
    return save_agent(model, tmp_path_factory.mktemp("agent") / "agent")


# -- round trips ------------------------------------------------------------------------------------------------------


def test_every_algorithm_acts_and_trains_on(algorithm: type[OffPolicyDiffusion], tmp_path: Path) -> None:
    model = make(algorithm, **case_of(algorithm).every_update).learn(30)
    model.save(tmp_path / "agent")  # our own classes need no other function
    loaded: Any = load_agent(tmp_path / "agent")
    assert type(loaded) is algorithm and loaded.replay_buffer.buffer_size == 1
    assert same_actions(model, loaded)
    assert_identical(model.get_parameters(), loaded.get_parameters())
    assert loaded.buffer_size == model.buffer_size and loaded.replay_buffer_class is model.replay_buffer_class
    # with a replay buffer the two train on alike
    further: Any = load_agent(tmp_path / "agent", PointEnv(), device="cpu")
    assert_identical(model.get_parameters(), further.get_parameters())
    candidate: Any
    for candidate in (model, further):
        candidate.replay_buffer = model.replay_buffer
        np.random.seed(1)
        th.manual_seed(1)
        candidate.set_logger(model.logger)
        candidate.train(2, batch_size=8)
    assert_identical(model.get_parameters(), further.get_parameters())
    assert further.num_timesteps == 30 and further._n_updates == model._n_updates


@pytest.mark.parametrize("cls", [SAC, TD3, PPO, DDPG, A2C], ids=lambda cls: cls.__name__)
def test_baselines(cls: type[BaseAlgorithm], tmp_path: Path) -> None:
    model = baseline(cls).learn(20)
    path = save_agent(model, tmp_path / "agent")
    loaded = load_agent(path)
    assert type(loaded) is cls and same_actions(model, loaded)
    assert_identical(model.get_parameters(), loaded.get_parameters())
    further: Any = load_agent(path, PointEnv())
    if cls is SAC:
        assert further.log_ent_coef.item() == model.log_ent_coef.item() != 0.0  # type: ignore[attr-defined]
        # still the tensor that its optimizer moves
        assert further.log_ent_coef is further.ent_coef_optimizer.param_groups[0]["params"][0]
    further.learn(20, reset_num_timesteps=False)
    assert further.num_timesteps >= 40
    assert same_actions(model, cls.load(path))


@pytest.mark.parametrize(
    "cls, kwargs",
    [(SAC, {"use_sde": True}), (SAC, {"ent_coef": 0.1}), (PPO, {"use_sde": True, "clip_range_vf": 0.2}), (PPO, {})],
)
def test_variants_of_the_baselines(cls: type[BaseAlgorithm], kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = baseline(cls, learning_rate=LinearSchedule(1e-3, 0.0, 1.0), **kwargs).learn(20)
    loaded: Any = load_agent(save_agent(model, tmp_path / "agent"))
    assert same_actions(model, loaded) and loaded.lr_schedule(0.5) == 5e-4


def test_discrete_actions(tmp_path: Path) -> None:
    model = baseline(DQN, "CartPole-v1").learn(20)
    assert same_actions(model, load_agent(save_agent(model, tmp_path / "agent")))


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_observation(observation: str, tmp_path: Path) -> None:
    model = make(QSM, PointEnv(observation)).learn(20)
    path = save_agent(model, tmp_path / "agent")
    assert same_actions(model, load_agent(path))
    assert load_agent(path, PointEnv(observation)).observation_space == model.observation_space


@pytest.mark.parametrize("observation, policy", [("image", "CnnPolicy"), ("dict", "MultiInputPolicy")])
def test_baseline_observations(observation: str, policy: str, tmp_path: Path) -> None:
    model = baseline(PPO, PointEnv(observation), policy).learn(16)
    assert same_actions(model, load_agent(save_agent(model, tmp_path / "agent")))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_limit_of_weights_leaves_room_for_every_backbone(backbone: str, tmp_path: Path) -> None:
    policy_kwargs = {"backbone": backbone, "n_critics": 5, "layer_norm": backbone == "mlp", "share_features_extractor": True}
    model = make(QSM, policy_kwargs=policy_kwargs)
    assert same_actions(model, load_agent(save_agent(model, tmp_path / "agent")))


def test_arguments_of_all_kinds(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {
        "learning_rate": np.float64(0.1),
        "actor_learning_rate": LinearSchedule(1e-3, 0.0, 0.5),
        "critic_learning_rate": ConstantSchedule(1e-4),
        "train_freq": (2, "step"),
        "action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.1 * np.ones(2), dt=0.02),
        "max_grad_norm": float("inf"),
        "replay_buffer_kwargs": {"storage": "host"},
        "gamma": np.float32(0.9),
        "batch_size": np.int64(8),
    }
    policy_kwargs: dict[str, Any] = {
        "net_arch": {"pi": [8], "qf": [16]},
        "activation_fn": {"pi": th.nn.ELU, "qf": "relu"},
        "optimizer_class": th.optim.AdamW,
        "optimizer_kwargs": {"betas": (0.5, 0.9)},
        "features_extractor_class": FlattenExtractor,
        "state_arch": (8, 4),
    }
    model = make(QSM, policy_kwargs=policy_kwargs, **kwargs)
    model.save(tmp_path / "agent")
    loaded: Any = load_agent(tmp_path / "agent", PointEnv())
    for name in ("learning_rate", "max_grad_norm", "gamma", "batch_size"):
        value = getattr(loaded, name)
        assert value == kwargs[name] and type(value) is type(getattr(model, name)) in (int, float), name
    assert loaded.policy_kwargs == model.policy_kwargs and loaded.train_freq == model.train_freq
    assert isinstance(loaded.policy_kwargs["state_arch"], tuple)
    assert (loaded.actor_lr_schedule(0.75), loaded.critic_lr_schedule(0.0)) == (5e-4, 1e-4)
    assert np.array_equal(loaded.action_noise._sigma, 0.1 * np.ones(2)) and loaded.action_noise._dt == 0.02
    assert type(loaded.actor.optimizer) is th.optim.AdamW


def test_wrapped_noise_is_the_users(tmp_path: Path) -> None:
    noise = NormalActionNoise(np.zeros(2), np.ones(2))
    model = make(QSM, vector_env(2), action_noise=noise).learn(20)
    model.save(tmp_path / "agent")
    loaded: Any = load_agent(tmp_path / "agent", vector_env(3))
    assert isinstance(loaded.action_noise, NormalActionNoise) and loaded.action_noise._dtype is noise._dtype
    assert loaded.learn(20).n_envs == 3


def test_hindsight(tmp_path: Path) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True)
    buffer = {"n_sampled_goal": 2, "goal_selection_strategy": "final"}
    model = make(QSM, env, replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=buffer).learn(30)
    model.save(tmp_path / "agent")
    assert same_actions(model, load_agent(tmp_path / "agent"))
    loaded: Any = load_agent(tmp_path / "agent", env, learning_starts=5)
    assert isinstance(loaded.learn(20).replay_buffer, HerReplayBuffer) and loaded.replay_buffer_kwargs == buffer


SPACES = [
    spaces.Box(-np.inf, np.array([1.5, 0.1], np.float32)),
    spaces.Box(np.array([-0.1, -np.inf]), np.array([np.inf, 1e300]), dtype=np.float64),
    spaces.Box(-1.0, 1.0, (), np.float32),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(-(2**63), 2**63 - 2, (2,), np.int64),
    spaces.Box(np.float16(-0.1), np.float16(65504), (2,), np.float16),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 1], [2, 3]])),
    spaces.MultiBinary((2, 3)),
    spaces.MultiBinary(4),
    spaces.Dict([("z/..", spaces.Discrete(3)), ("a", spaces.Dict({"b": spaces.Box(-1.0, 1.0, (2,))}))]),
    spaces.Tuple([spaces.Discrete(2), spaces.Box(0.0, 1.0, (1,))]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_round_trip_exactly(space: spaces.Space) -> None:
    text = json.dumps(space_to_plain(space, "space"), allow_nan=False)
    restored = space_from_plain(json.loads(text), "space")
    assert restored == space and str(restored) == str(space)
    if isinstance(space, spaces.Dict):
        assert list(restored.spaces) == list(space.spaces)  # type: ignore[attr-defined]
    if isinstance(space, spaces.Box):
        assert isinstance(restored, spaces.Box) and restored.low.tobytes() == space.low.tobytes()
        assert restored.is_bounded("below") == space.is_bounded("below")


def test_the_registry_knows_every_algorithm() -> None:
    names = [method.zoo_name for method in available_methods()] + list(BASELINES)
    assert [algorithm_name(load_algorithm(name)) for name in names] == names
    assert algorithm_name(type("QSM", (QSM,), {"__module__": "somewhere"})) is None
    assert {"save_agent", "load_agent", "load_normalization"} <= set(sb3_diffusion.__all__) & set(dir(sb3_diffusion))


# -- files ------------------------------------------------------------------------------------------------------------


def test_small_files_without_the_optimizers(tmp_path: Path) -> None:
    model = make(QSM, policy_kwargs={"net_arch": [64, 64]}).learn(30)
    full, small = (save_agent(model, tmp_path / f"{keep}", optimizer_state=keep) for keep in (True, False))
    assert small.stat().st_size < 0.5 * full.stat().st_size
    for loaded in (load_agent(small), QSM.load(small)):
        assert same_actions(model, loaded) and set(optimizer_states(loaded)) == {0}
    assert 0 not in optimizer_states(load_agent(full)) and 0 not in optimizer_states(model)
    assert load_agent(small, PointEnv()).learn(20).num_timesteps == 20


def test_small_files_hold_one_actor(tmp_path: Path) -> None:
    model = make(DPMD, policy_kwargs={"net_arch": {"pi": [64, 64], "qf": [4]}}, refresh_interval=1000).learn(30)
    full, small = (save_agent(model, tmp_path / f"{keep}", optimizer_state=keep) for keep in (True, False))
    sizes = {}
    for path in (full, small):
        with zipfile.ZipFile(path) as archive:
            sizes[path] = archive.getinfo("policy.pth").file_size
    assert sizes[small] < 0.6 * sizes[full]
    agents: list[Any] = [load_agent(small), DPMD.load(small)]
    for loaded in agents:
        assert same_actions(model, loaded)
        assert all(map(th.equal, loaded.actor_target.parameters(), loaded.actor.parameters()))
        addresses = {parameter.data_ptr() for parameter in loaded.policy.parameters()}
        assert len(addresses) == len(list(loaded.policy.parameters())), "nothing is shared in memory"
    complete: Any = load_agent(full)
    assert not all(map(th.equal, complete.actor_target.parameters(), model.actor.parameters()))


def test_file_objects_and_endings(tmp_path: Path) -> None:
    model = make(QSM)
    content = io.BytesIO()
    model.save(content)
    content.seek(0)
    assert same_actions(model, load_agent(content))
    with (tmp_path / "open.zip").open("wb") as file:
        model.save(file)
    assert same_actions(model, load_agent(tmp_path / "open")) and same_actions(model, QSM.load(tmp_path / "open"))
    assert save_agent(model, tmp_path / "new" / "agent") == tmp_path / "new" / "agent.zip"
    with pytest.raises(FileNotFoundError, match=r"no file .*absent"):
        load_agent(tmp_path / "absent")


def test_callbacks_save_agents(tmp_path: Path) -> None:
    make(QSM).learn(20, callback=CheckpointCallback(10, str(tmp_path)))
    assert load_agent(tmp_path / "rl_model_20_steps").num_timesteps == 20


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(QSM)
    path = save_agent(model, tmp_path / "agent")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sb3_diffusion.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        model.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_description_is_standard_json_and_stays_on_this_machine(tmp_path: Path) -> None:
    model = make(QSM, tensorboard_log=str(tmp_path / "secret"), execution="eager")
    path = save_agent(model, tmp_path / "agent")
    text = members_of(path)["sb3_diffusion.json"].decode()
    stored = json.loads(text, parse_constant=pytest.fail)
    assert stored["algorithm"] == "qsm" and stored["not_portable"] == {} and str(tmp_path) not in text
    assert stored["versions"]["sb3_diffusion"] == sb3_diffusion.__version__
    assert load_agent(path, tensorboard_log="elsewhere").tensorboard_log == "elsewhere"


# -- what plain JSON cannot hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, argument, what",
    [
        ({"learning_rate": lambda progress: 1e-3}, "learning_rate", "the function "),
        (
            {"policy_kwargs": {"features_extractor_class": BatchNormExtractor}},
            "policy_kwargs.features_extractor_class",
            "class",
        ),
        ({"policy": CautiousPolicy}, "policy", "CautiousPolicy"),
    ],
)
def test_what_is_not_portable_is_saved_and_named(kwargs: dict[str, Any], argument: str, what: str, tmp_path: Path) -> None:
    model = make(QSM, **kwargs)
    path = save_agent(model, tmp_path / "agent")
    assert same_actions(model, QSM.load(path))
    with pytest.raises(ValueError) as caught:
        load_agent(path)
    for fragment in (str(path), "sb3_diffusion.json", f"{argument} was ", what, "Algo.load", "runs the code"):
        assert fragment in str(caught.value)
    assert same_actions(model, load_agent(path, **kwargs))


def test_an_algorithm_of_the_users_own_is_not_portable(tmp_path: Path) -> None:
    class Mine(QSM):
        pass

    path = save_agent(make(Mine), tmp_path / "agent")
    with pytest.raises(ValueError, match=r"algorithm was the class .*Mine, which has no plain form; if you trust"):
        load_agent(path)


class Registered(QSM):
    """What a user registers."""


class Unregistered(QSM):
    """What a user does not."""


def test_a_registered_class_is_saved_and_loaded_safely(tmp_path: Path, own_names: None) -> None:
    assert register_method(Registered) is Registered
    model = make(Registered)
    path = save_agent(model, tmp_path / "agent")
    assert described_algorithm(path) == "registered" and why_unsafe(path) is None
    assert type(load_agent(path)) is Registered and same_actions(model, load_agent(path))
    taxonomy._REGISTERED.clear()  # another session, which has not imported the module
    with pytest.raises(ValueError, match=r"algorithm='registered' is not in the registry.*import.*register_method"):
        load_agent(path)
    assert type(load_agent(path, algorithm=Registered)) is Registered
    with pytest.raises(ValueError, match="algorithm='registered' is not in the registry"):
        load_agent(path, algorithm=Unregistered)


def test_the_class_of_a_file_that_names_none_is_given(tmp_path: Path) -> None:
    model = make(Unregistered)
    path = save_agent(model, tmp_path / "agent")
    assert described_algorithm(path) is None
    with pytest.raises(ValueError, match=r"algorithm was the class .*Unregistered, which .* pass algorithm=\.\.\., the class"):
        load_agent(path)
    loaded = load_agent(path, algorithm=Unregistered)
    assert type(loaded) is Unregistered and same_actions(model, loaded)
    with pytest.raises(ValueError, match="SAC takes no argument"):
        load_agent(path, algorithm=SAC)


def test_a_class_that_is_given_must_be_what_the_file_names(agent: Path) -> None:
    assert type(load_agent(agent, algorithm=QSM)) is QSM
    assert type(load_agent(agent, algorithm=Unregistered)) is Unregistered
    with pytest.raises(ValueError, match="algorithm=SAC is not QSM, whose agent this is, nor derives from it"):
        load_agent(agent, algorithm=SAC)
    wrong: Any = "qsm"
    with pytest.raises(TypeError, match="algorithm='qsm' must be the class of an algorithm"):
        load_agent(agent, algorithm=wrong)


def test_settings_replace_arguments(agent: Path) -> None:
    assert load_agent(agent, gamma=0.5, policy_kwargs={"sampling_steps": 2}).gamma == 0.5  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="no argument 'gama'; did you mean gamma"):
        load_agent(agent, gama=0.5)


# -- normalisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation", ["box", "matrix", "dict"])
def test_statistics(observation: str, tmp_path: Path) -> None:
    keys = ["point"] if observation == "dict" else None
    env = VecNormalize(vector_env(2, observation=observation), clip_obs=5.0, epsilon=1e-3, gamma=0.9, norm_obs_keys=keys)
    model = make(QSM, env).learn(30)
    model.save(tmp_path / "agent")
    loaded = load_normalization(tmp_path / "agent", vector_env(1, observation=observation))
    assert isinstance(loaded, VecNormalize) and not loaded.training and not loaded.norm_reward
    raw = observations(vector_env(1, observation=observation).observation_space)
    assert_identical(to_lists(env.normalize_obs(raw)), to_lists(loaded.normalize_obs(raw)))
    assert (loaded.clip_obs, loaded.epsilon, loaded.gamma) == (5.0, 1e-3, 0.9)
    assert loaded.ret_rms.mean == env.ret_rms.mean and loaded.ret_rms.count == env.ret_rms.count
    further = load_agent(tmp_path / "agent", loaded)
    assert further.get_vec_normalize_env() is loaded and further.learn(10)


def to_lists(observation: Any) -> Any:
    return (
        {key: value.tolist() for key, value in observation.items()} if isinstance(observation, dict) else observation.tolist()
    )


def test_rewards_alone(tmp_path: Path) -> None:
    make(QSM, VecNormalize(vector_env(1), norm_obs=False)).save(tmp_path / "agent")
    loaded = load_normalization(tmp_path / "agent", vector_env(1))
    assert isinstance(loaded, VecNormalize) and not loaded.norm_obs


def test_no_statistics(tmp_path: Path) -> None:
    make(QSM).save(tmp_path / "agent")
    env = vector_env(1)
    assert load_normalization(tmp_path / "agent", env) is env


def test_forgotten_normalisation_is_noticed(agent: Path) -> None:
    with pytest.warns(UserWarning, match=r"normalised observations; wrap env by load_normalization"):
        load_agent(agent, vector_env(1))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"observations_0_mean": np.zeros(4)}, r"observations_0_mean has shape \(4,\).* of shape \(3,\)"),
        ({"observations_0_var": -np.ones(3)}, "observations_0_var must not be negative"),
        ({"observations_0_mean": np.full(3, np.nan)}, "observations_0_mean .* must be finite"),
        ({"observations_0_count": None}, "observations_0_count is missing"),
        ({"settings": np.array('{"norm_obs": true}')}, "settings must be"),
        ({"settings": np.array("[NaN]")}, "not standard JSON"),
        ({"observations_0_mean": np.array([Path(), None, 0], dtype=object)}, "observations_0_mean.npy is no array of numbers"),
    ],
    ids=["shape", "negative", "nan", "missing", "settings", "json", "objects"],
)
def test_bad_statistics(agent: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    members = members_of(agent)
    with np.load(io.BytesIO(members["vec_normalize.npz"])) as arrays:
        edited = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    content = io.BytesIO()
    np.savez(content, allow_pickle=True, **edited)
    path = write(tmp_path / "bad.zip", {**members, "vec_normalize.npz": content.getvalue()})
    with pytest.raises(ValueError, match=f"bad.zip: vec_normalize.npz.*{message}"):
        load_normalization(path, vector_env(1))


def test_an_array_cannot_ask_for_memory(agent: Path, tmp_path: Path) -> None:
    header = np.lib.format.magic(1, 0) + b"\x76\x00"
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + "\n"
    inner = write(tmp_path / "inner.npz", {"settings.npy": header + text.encode()}).read_bytes()
    path = write(tmp_path / "bad.zip", {**members_of(agent), "vec_normalize.npz": inner})
    with pytest.raises(ValueError, match=r"settings.npy is no array of numbers \(objects, or a size"):
        load_normalization(path, vector_env(1))


def test_statistics_of_another_environment(agent: Path) -> None:
    with pytest.raises(ValueError, match="normalises Box observations, the environment observes Discrete"):
        load_normalization(agent, vector_env(1, observation="discrete"))


# -- damaged and hostile files ----------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it writes the file ``canary``."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.write_text, (self.canary, "executed")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.read_text() == "executed"  # it would go off
    path.unlink()
    return path


def test_the_data_of_stable_baselines3_is_never_opened(agent: Path, tmp_path: Path, canary: Path) -> None:
    serialized = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Bomb(canary))).decode()}
    members = members_of(agent) | {"data": json.dumps({"policy_class": serialized}).encode()}
    path = write(tmp_path / "bomb.zip", members)
    assert same_actions(load_agent(agent), load_agent(path)) and load_normalization(path, vector_env(1))
    assert load_agent(write(tmp_path / "raw.zip", members | {"data": pickle.dumps(Bomb(canary))}))
    assert not canary.exists()
    with pytest.raises(Exception):  # noqa: B017  # whatever Stable-Baselines3 says afterwards
        QSM.load(path)
    assert canary.exists()


@pytest.mark.parametrize("member", ["policy.pth", "actor.optimizer.pth", "pytorch_variables.pth"])
def test_code_among_the_weights_is_refused(agent: Path, tmp_path: Path, canary: Path, member: str) -> None:
    for content in (saved({"weight": Bomb(canary)}), pickle.dumps(Bomb(canary))):
        path = write(tmp_path / "bomb.zip", members_of(agent) | {member: content})
        with pytest.raises(ValueError, match=f"bomb.zip: {member}") as caught:
            load_agent(path)
        assert "weights_only=False" not in str(caught.value)
    assert not canary.exists()


def test_pickles_among_the_statistics_are_refused(agent: Path, tmp_path: Path, canary: Path) -> None:
    content = io.BytesIO()
    np.savez(content, allow_pickle=True, settings=np.array([Bomb(canary)], dtype=object))
    for hostile in (content.getvalue(), pickle.dumps(Bomb(canary))):
        path = write(tmp_path / "bomb.zip", members_of(agent) | {"vec_normalize.npz": hostile})
        with pytest.raises(ValueError, match=r"bomb.zip: vec_normalize.npz"):
            load_normalization(path, vector_env(1))
    assert not canary.exists()


def edit_json(**changes: Any) -> Edit:
    def edit(members: dict[str, bytes]) -> dict[str, bytes]:
        stored = json.loads(members["sb3_diffusion.json"])
        for path, value in changes.items():
            *parents, last = path.split("__")
            place = stored
            for key in parents:
                place = place[key]
            place[last] = value
        return members | {"sb3_diffusion.json": json.dumps(stored).encode()}

    return edit


def replace(member: str, content: bytes) -> Edit:
    return lambda members: members | {member: content}


def drop(member: str) -> Edit:
    return lambda members: {name: data for name, data in members.items() if name != member}


def edit_weights(member: str, change: Callable[[Any], Any]) -> Edit:
    return lambda members: members | {member: saved(change(th.load(io.BytesIO(members[member]), weights_only=True)))}


def with_first(value: Any) -> Callable[[Any], Any]:
    return lambda state: {**state, next(iter(state)): value}


def without_first(state: Any) -> Any:
    return dict(list(state.items())[1:])


def with_moment(value: Any) -> Callable[[Any], Any]:
    return lambda state: {**state, "state": {**state["state"], 0: {**state["state"][0], "exp_avg": value}}}


DEEP = b"[" * 100_000 + b"]" * 100_000
HUGE_BOX = {"type": "Box", "shape": [100_000, 100_000], "dtype": "float32", "low": 0, "high": 1}
MANY_BOXES = {"type": "Dict", "spaces": {str(i): {**HUGE_BOX, "shape": [10**6]} for i in range(100)}}
J = "sb3_diffusion.json"
REFUSED: list[tuple[str, Edit, str]] = [
    ("no description", drop(J), r"has no sb3_diffusion.json.*save_agent.*Algo.load"),
    ("algorithm", edit_json(algorithm="os.system"), f"{J}: algorithm='os.system' is not in the registry"),
    ("no algorithm", edit_json(algorithm=None), f"{J}: algorithm='None' is not in the registry"),
    ("policy", edit_json(policy={":class": "subprocess.Popen"}), f"{J}: policy names the class 'subprocess.Popen'"),
    ("policy name", edit_json(policy="os.system"), f"{J}: QSM cannot be built .*Unknown policy='os.system'"),
    ("class", edit_json(policy_kwargs__optimizer_class={":class": "os.system"}), f"{J}: policy_kwargs.optimizer_class names"),
    ("other class", edit_json(policy_kwargs__optimizer_class={":class": "torch.nn.ReLU"}), f"{J}: QSM cannot be built"),
    (
        "object",
        edit_json(arguments__learning_rate={":object": "Popen"}),
        f"{J}: arguments.learning_rate is the unknown object",
    ),
    ("form", edit_json(arguments__gamma={":eval": "1"}), f"{J}: arguments.gamma has the unknown form ':eval'"),
    ("environment", edit_json(arguments__env="os:system"), f"{J}: QSM takes no argument 'env' from a file"),
    ("log folder", edit_json(arguments__tensorboard_log="/"), "takes no argument 'tensorboard_log' from a file"),
    (
        "newer argument",
        edit_json(arguments__magic=1),
        r"takes no argument 'magic' from a file; install the version that wrote",
    ),
    ("data", edit_json(arguments__dataset="/etc/passwd"), f"{J}: arguments.dataset='/etc/passwd' must be"),
    ("nameless data", edit_json(arguments__dataset={"kind": "hdf5"}), f"{J}: arguments.dataset=.* must be a description"),
    ("transform", edit_json(arguments__reward_transform="os.system"), f"{J}: QSM cannot be built .*reward_transform"),
    ("value", edit_json(arguments__temperature=-1.0), f"{J}: QSM cannot be built .*temperature=-1.0"),
    ("type", edit_json(policy_kwargs__net_arch="wide"), f"{J}: QSM cannot be built"),
    ("newer format", edit_json(format=2), f"{J}: format=2 is newer than 1.*update sb3_diffusion"),
    ("no format", edit_json(format="1"), f"{J}: format='1' must be a positive integer"),
    ("entries", edit_json(arguments=[]), f"{J}: 'arguments' is missing or of the wrong type"),
    ("counters", edit_json(counters__num_timesteps=-1), f"{J}: 'counters' must be"),
    ("list", replace(J, b"[]"), f"{J}: format=None"),
    ("NaN", replace(J, b'{"format": NaN}'), f"{J} is not standard JSON .NaN"),
    ("twice", replace(J, b'{"format": 1, "format": 1}'), f"{J} is not standard JSON .a key occurs twice"),
    ("text", replace(J, b"\xff\xfe"), f"{J} is not standard JSON"),
    ("deep", replace(J, DEEP), f"{J} is nested too deeply"),
    ("absurdly large", replace(J, b" " * (4 * 2**20) + b"{}"), f"{J} declares 4,194,306 bytes, more than the 4,194,304"),
    ("space", edit_json(observation_space={"type": "Graph"}), f"{J}: observation_space is of the unknown type 'Graph'"),
    ("no space", edit_json(action_space=None), f"{J}: action_space must be a mapping"),
    ("huge space", edit_json(observation_space=HUGE_BOX), f"{J}: observation_space has 10,000,000,000 entries"),
    ("huge spaces", edit_json(observation_space=MANY_BOXES), f"{J}: observation_space has 100,000,000 entries"),
    ("bounds", edit_json(observation_space__low=[1, 2]), f"{J}: observation_space has bounds of 2 entries"),
    ("dtype", edit_json(observation_space__dtype="object"), f"{J}: observation_space has the dtype 'object'"),
    ("other space", edit_json(action_space__shape=[5]), r"policy.pth: .* has shape .* do not belong together"),
    ("wide network", edit_json(policy_kwargs__net_arch=[5000, 5000]), "cannot be built .*have more than .* weights"),
    ("no weights", drop("policy.pth"), "lacks the member 'policy.pth'"),
    ("no optimizer", drop("actor.optimizer.pth"), "lacks the member 'actor.optimizer.pth'"),
    ("surplus member", replace("critic.pth", saved({})), "has an unexpected member 'critic.pth'"),
    ("missing weight", edit_weights("policy.pth", without_first), r"policy.pth lacks the weights .*\(1 in all\)"),
    (
        "surplus weight",
        edit_weights("policy.pth", lambda s: {**s, "x": th.ones(1)}),
        "policy.pth has an unexpected weights 'x'",
    ),
    ("shape", edit_weights("policy.pth", with_first(th.zeros(3, 5, 7))), r"policy.pth: .* has shape \(3, 5, 7\)"),
    ("no tensor", edit_weights("policy.pth", with_first(3.0)), "policy.pth: .* must be a dense tensor"),
    ("no mapping", replace("policy.pth", saved([th.ones(1)])), "policy.pth must be a mapping"),
    ("moment", edit_weights("actor.optimizer.pth", with_moment(th.zeros(2))), "state 0: 'exp_avg' has not the shape"),
    ("setting", edit_weights("actor.optimizer.pth", lambda s: {**s, "param_groups": []}), "state of other parameters"),
    (
        "optimizer",
        replace("actor.optimizer.pth", saved({"state": 1})),
        "actor.optimizer.pth must be the state of an optimizer",
    ),
    ("variables", replace("pytorch_variables.pth", saved({"x": th.ones(1)})), "unexpected variable 'x'"),
    ("no zip", replace("policy.pth", b"PK nonsense"), "policy.pth is no zip archive, or is truncated"),
]


@pytest.mark.parametrize("edit, message", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_defects_are_named(agent: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    path = write(tmp_path / "bad.zip", edit(members_of(agent)))
    with pytest.raises(ValueError, match=message) as caught:
        load_agent(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)[:200]
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_built_for_a_bad_member(agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QSM, "__init__", lambda *args, **kwargs: pytest.fail("built"))
    for edit in (edit_json(format=2), edit_json(policy={":class": "os.system"}), replace("policy.pth", b"PK")):
        with pytest.raises(ValueError):
            load_agent(write(tmp_path / "bad.zip", edit(members_of(agent))))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files(agent: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(agent.read_bytes()[: int(share * agent.stat().st_size)])
    with pytest.raises(ValueError, match=r"bad.zip is no zip archive, or is truncated .*get the file again"):
        load_agent(path)


def test_changed_bytes_are_noticed(agent: Path, tmp_path: Path) -> None:
    content = bytearray(agent.read_bytes())
    with zipfile.ZipFile(agent) as archive:
        content[archive.getinfo("policy.pth").header_offset + 2000] ^= 0xFF
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad.zip: policy.pth is damaged"):
        load_agent(tmp_path / "bad.zip")


def test_other_spaces_of_the_environment(agent: Path) -> None:
    with pytest.raises(ValueError, match=r"the agent has the observation_space Box.*, the environment Discrete\(6\)"):
        load_agent(agent, PointEnv("discrete"))
    with pytest.raises(ValueError, match=r"the agent has the action_space Box.*, the environment Box"):
        load_agent(agent, PointEnv(action_space=spaces.Box(-2.0, 2.0, (2,))))
