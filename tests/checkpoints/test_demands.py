"""Small files that describe large agents: refused before anything is allocated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, SAC
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_diffusion import DIME, FPMD, QSM, load_agent, save_agent
from sb3_diffusion.checkpoints.demands import at_most, check_counts, held
from tests.checkpoints.test_agents import baseline, edit_json, members_of, saved, write
from tests.environments import PointEnv
from tests.helpers import make

MB = 2**20
WIDE = {"type": "Box", "shape": [5 * 10**6], "dtype": "float32", "low": -1, "high": 1}
MANY = {"type": "Discrete", "n": 10**12, "start": 0, "dtype": "int64"}
MULTI = {"type": "MultiDiscrete", "nvec": [10**9] * 100, "start": [0] * 100, "dtype": "int64"}
PICTURE = {"type": "Box", "shape": [3, 1200, 1200], "dtype": "uint8", "low": 0, "high": 255}


class Allocated(TorchDispatchMode):
    """Counts what PyTorch really makes."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = self.n_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.n_operations += 1
        if isinstance(result, th.Tensor):
            self.n_bytes += result.untyped_storage().nbytes()
        return result


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("agents")
    models = {cls.__name__: make(cls) for cls in (QSM, DIME, FPMD)}
    models |= {cls.__name__: baseline(cls) for cls in (SAC, PPO)}
    models["CNN"] = baseline(PPO, PointEnv("image"), "CnnPolicy")
    return {name: members_of(save_agent(model, folder / name)) for name, model in models.items()}


COUNT = r"asks for [\d,]+, more than the 10,000 that a file may"
SIZE = r"have more than [\d,]+ (bytes of weights|weights and biases)"
MEMORY = r"memory of transitions would take [\d,]+ bytes, this machine has .*; pass a smaller buffer_size"
CASES: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"policy_kwargs__net_arch": [10**6]}, COUNT) for name in ("QSM", "SAC", "PPO")),
    *((name, {"policy_kwargs__net_arch": [10**4, 10**4]}, SIZE) for name in ("QSM", "SAC", "PPO")),
    *((name, {"policy_kwargs__net_arch": [1] * 10**4}, SIZE) for name in ("QSM", "SAC")),
    ("QSM", {"policy_kwargs__net_arch": [1] * 10**5}, COUNT),
    ("QSM", {"policy_kwargs__net_arch": [1] * 10**6}, "it has more than 200,000 values"),
    ("SAC", {"policy_kwargs__net_arch": {"pi": [8], "qf": [10**6]}}, COUNT),
    ("PPO", {"policy_kwargs__net_arch": {"pi": [9000, 9000], "vf": [8]}}, SIZE),
    ("QSM", {"policy_kwargs__diffusion_steps": 10**7}, COUNT),
    ("DIME", {"policy_kwargs__diffusion_steps": 10**7}, COUNT),
    ("FPMD", {"policy_kwargs__sampling_steps": 10**5}, COUNT),
    ("QSM", {"policy_kwargs__n_critics": 10**6}, COUNT),
    ("QSM", {"policy_kwargs__n_critics": 10**4}, SIZE),
    ("SAC", {"policy_kwargs__n_critics": 10**4}, SIZE),
    ("DIME", {"arguments__n_atoms": 10**6}, COUNT),
    ("DIME", {"arguments__n_atoms": 10**4}, SIZE),
    ("QSM", {"arguments__n_particles": 10**9}, "takes no argument|" + COUNT),
    ("CNN", {"policy_kwargs__features_extractor_kwargs": {"features_dim": 10**7}}, COUNT),
    ("CNN", {"policy_kwargs__features_extractor_kwargs": {"features_dim": 10**4}}, SIZE),
    ("CNN", {"observation_space": PICTURE}, SIZE),
    *((name, {"observation_space": WIDE}, SIZE) for name in ("QSM", "SAC", "PPO")),
    *((name, {"observation_space": MANY}, SIZE) for name in ("QSM", "SAC")),
    ("PPO", {"observation_space": MULTI}, SIZE),
    ("SAC", {"action_space": WIDE}, SIZE),
    ("QSM", {"observation_space": {**WIDE, "shape": [1] * 1000}}, "a list of at most 32 sizes"),
    ("PPO", {"arguments__n_steps": 10**10}, MEMORY),
]


@pytest.mark.parametrize("name, changes, message", CASES, ids=[f"{case[0]}-{case[1]}"[:60] for case in CASES])
def test_refused_before_it_is_built(
    agents: dict[str, dict[str, bytes]], tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "agent.zip", edit_json(**changes)(agents[name]))
    with Allocated() as made, pytest.raises(ValueError, match=message) as caught:
        load_agent(path)
    assert str(caught.value).startswith(str(path))
    assert made.n_bytes < 80 * MB and made.n_operations < 20_000


@pytest.mark.parametrize("changes", [{"arguments__buffer_size": 10**13}, {"arguments__n_steps": 10**12}])
def test_memory_of_transitions(agents: dict[str, dict[str, bytes]], tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path / "agent.zip", edit_json(**changes)(agents["QSM"]))
    load_agent(path)  # an agent that only acts has none
    with pytest.raises(ValueError, match=MEMORY):
        load_agent(path, PointEnv())
    smaller: dict[str, Any] = {name.removeprefix("arguments__"): 3 for name in changes}
    load_agent(path, PointEnv(), **smaller)


def test_the_callers_own_arguments_are_not_counted(agents: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    path = write(tmp_path / "agent.zip", agents["QSM"])
    with pytest.raises(ValueError, match=SIZE):  # not because of the number, but it is another network
        load_agent(path, policy_kwargs={"net_arch": [20_000, 8]})


def test_counts() -> None:
    check_counts({"net_arch": {"pi": [256, 256]}, "n_critics": 10, "activation_fn": nn.ReLU, "x": True}, "policy_kwargs")
    check_counts({"buffer_size": 10**6, "n_steps": 10**5, "alpha_update_interval": 10**5, "seed": 2**31}, "arguments")
    for value in ([[10**5]], {"a": (np.int64(10**5),)}, list(range(20_000)), 2**70):
        with pytest.raises(ValueError, match=r"policy_kwargs.x asks for"):
            check_counts({"x": value}, "policy_kwargs")


@pytest.mark.parametrize(
    "make_it",
    [
        lambda: th.empty(10**7),
        lambda: th.zeros((10**4, 10**4), dtype=th.uint8),
        lambda: th.rand(4, 10**7),
        lambda: th.full((10**7,), 1.0),
        lambda: th.arange(10**8),
        lambda: th.linspace(0, 1, 10**8),
        lambda: th.eye(10**5),
        lambda: th.empty(4).new_zeros(10**7),
        lambda: nn.Linear(10**4, 10**4),
        lambda: nn.Embedding(10**7, 4),
    ],
)
def test_one_tensor(make_it: Any) -> None:
    with Allocated() as made, at_most(2, 1000, spare_bytes=0), pytest.raises(
        ValueError, match="bytes of weights in one tensor"
    ):
        make_it()
    assert made.n_bytes < MB


def test_all_tensors_together() -> None:
    with at_most(2, 1000, spare_bytes=0), pytest.raises(
        ValueError, match=r"more than [\d,]+ bytes of weights, the file 1,000"
    ):
        nn.Sequential(*(nn.Linear(300, 300) for _ in range(10)))
    with at_most(2, 1000, spare_bytes=0), pytest.raises(ValueError, match="more than 72 weights and biases, the file 2"):
        nn.Sequential(*(nn.Linear(1, 1) for _ in range(100)))
    nn.Sequential(*(nn.Linear(1, 1) for _ in range(100)))  # afterwards nothing is counted


def test_shared_numbers_are_held_once() -> None:
    weight = th.zeros(100)
    assert held({"a": weight, "b": weight, "c": weight[:50]}) == (3, 400)
    # many numbers that are one
    assert held({"a": th.zeros(1).expand(10**9)}) == (1, 4)


def test_a_weight_that_is_one_number(agents: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    state = {"actor.x": th.zeros(1).expand(10**9)}
    members = agents["QSM"] | {"policy.pth": saved(state)}
    path = write(tmp_path / "agent.zip", edit_json(policy_kwargs__net_arch=[9000, 9000])(members))
    with pytest.raises(ValueError, match=SIZE):
        load_agent(path)
