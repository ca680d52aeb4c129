"""Names of Isaac Lab's tasks, and the order in which its application, configuration and environments are made."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest

from sb3_diffusion.envs.tensor import IsaacLabVecEnv, make_isaaclab, make_tensor_env, resolve_isaac_task
from sb3_diffusion.envs.tensor.adapters import isaaclab_launch
from tests.envs.tensor.fake_isaac import FakeIsaacEnv

OLD = [
    "Isaac-Ant-v0",
    "Isaac-Humanoid-v0",
    "Isaac-Velocity-Flat-Anymal-D-v0",
    "Isaac-Velocity-Rough-Unitree-Go2-v0",
    "Isaac-Velocity-Flat-Unitree-Go1-v0",
    "Isaac-Lift-Cube-Franka-v0",
    "Isaac-Open-Drawer-Franka-v0",
    "Isaac-Franka-Cabinet-Direct-v0",
    "Isaac-Velocity-Flat-G1-v0",
    "Isaac-Cartpole-v0",
    "Isaac-Velocity-Flat-Anymal-C-v0",
    "Isaac-Velocity-Flat-Spot-v0",
]
NEW = [
    "Isaac-Ant",
    "Isaac-Humanoid",
    "Isaac-Velocity-Flat-AnymalD",
    "Isaac-Velocity-Rough-UnitreeGo2",
    "IsaacContrib-Velocity-Flat-UnitreeGo1",
    "IsaacContrib-Lift-Cube-Franka",
    "Isaac-Open-Drawer-Franka",
    "Isaac-Open-Drawer-Franka-Direct",
    "Isaac-Velocity-Flat-G1",
    "Isaac-Cartpole",
    "IsaacContrib-Velocity-Flat-AnymalC",
    "IsaacContrib-Velocity-Flat-Spot",
]
OTHERS = ["Isaac-Lift-Franka", "Isaac-Ant-Direct", "Isaac-Lift-KukaAllegro"]


@pytest.mark.parametrize(("old", "new"), list(zip(OLD, NEW, strict=True)))
def test_tasks_are_found_under_both_names(old: str, new: str) -> None:
    assert resolve_isaac_task(old, [*NEW, *OTHERS]) == new
    assert resolve_isaac_task(new, OLD) == old
    assert resolve_isaac_task(new, NEW) == new and resolve_isaac_task(old, OLD) == old


def test_no_name_leads_to_another_task() -> None:
    for name in ("Isaac-Lift-Franka-v0", "Isaac-Ant-Play-v0"):
        with pytest.raises(ValueError, match=rf"Isaac Lab has no task '{name}'.* the nearest are "):
            resolve_isaac_task(name, [*NEW, *OTHERS])
    with pytest.raises(ValueError, match="have isaaclab_tasks been imported"):
        resolve_isaac_task("Isaac-Ant", ["Pendulum-v1"])
    with pytest.warns(UserWarning, match="is called Isaac-Ant-Direct in this release .* observations have 60 numbers"):
        assert resolve_isaac_task("Isaac-Ant-Direct-v0", [*NEW, *OTHERS]) == "Isaac-Ant-Direct"


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs a fake of either release, which writes down what happens to it."""
    events: list[str] = []
    callbacks: list[Any] = []
    monkeypatch.setattr(isaaclab_launch.atexit, "register", callbacks.append)

    def install(generation: int) -> list[str]:
        root, app, tasks, tools = (
            ModuleType(name) for name in ("isaaclab", "isaaclab.app", "isaaclab_tasks", "isaaclab_tasks.utils")
        )
        root.__spec__ = ModuleSpec("isaaclab", None)
        cfgs: list[SimpleNamespace] = []

        def parse_env_cfg(name: str, device: str | None = None, num_envs: int | None = None) -> SimpleNamespace:
            events.append(f"configure {name} {num_envs} {device}")
            cfg = SimpleNamespace(num_envs=num_envs or 4, seed=None)
            if generation == 3:
                cfg.compute_final_obs = False
            cfgs.append(cfg)
            return cfg

        class AppLauncher:
            def __init__(self, **settings: Any):
                events.append(f"launch {settings}")
                self.app = SimpleNamespace(close=lambda: events.append("close"))

        @contextmanager
        def launch_simulation(cfg: Any, settings: dict[str, Any]) -> Iterator[None]:
            events.append(f"launch {settings}")
            yield
            events.append("close")

        app.AppLauncher = AppLauncher  # type: ignore[attr-defined]
        if generation == 3:
            app.launch_simulation = launch_simulation  # type: ignore[attr-defined]
        tools.parse_env_cfg = parse_env_cfg  # type: ignore[attr-defined]
        for module in (root, app, tasks, tools):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        name = "Isaac-Ant" if generation == 3 else "Isaac-Ant-v0"
        monkeypatch.setitem(gym.registry, name, None)

        def make(env_id: str, cfg: Any) -> FakeIsaacEnv:
            events.append(f"make {env_id} seed {cfg.seed}")
            fake = FakeIsaacEnv(cfg.num_envs, generation, getattr(cfg, "compute_final_obs", False))
            return fake

        monkeypatch.setattr(isaaclab_launch.gym, "make", make)
        return events

    yield install
    for callback in callbacks:
        callback()


def test_generation_3_is_configured_before_it_is_launched(lab: Any) -> None:
    events = lab(3)
    env = make_isaaclab("Isaac-Ant-v0", num_envs=6, seed=5, action_bound=2.0)
    assert events == ["configure Isaac-Ant 6 None", "launch {'headless': True}", "make Isaac-Ant seed 5"]
    assert isinstance(env, IsaacLabVecEnv) and env.num_envs == 6 and env.simulator.cfg.compute_final_obs
    env.close()
    assert "close" not in events  # the end of the process closes the application


@pytest.mark.filterwarnings("ignore:This environment does not tell the last observation:UserWarning")
def test_generation_2_is_launched_before_anything_else(lab: Any) -> None:
    events = lab(2)
    make_tensor_env("Isaac-Ant", device="cuda:0", headless=False)
    launched = "launch {'headless': False, 'device': 'cuda:0'}"
    assert events == [launched, "configure Isaac-Ant-v0 None cuda:0", "make Isaac-Ant-v0 seed None"]


def test_final_observations_are_computed_only_when_wanted(lab: Any) -> None:
    lab(3)
    assert not make_isaaclab("Isaac-Ant", final_obs=False).simulator.cfg.compute_final_obs


def test_what_is_missing_is_said_in_one_sentence() -> None:
    if isaaclab_launch.importlib.util.find_spec("isaaclab") is None:
        with pytest.raises(ImportError, match=r"^Isaac-Ant-v0 needs Isaac Lab, which is not installed: [^.]*3\.0 [^\n]*$"):
            make_tensor_env("Isaac-Ant-v0")
