"""Files of earlier versions, and that today's will be readable by later ones."""

import base64
import io
import json
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_diffusion import DACER, DPS, QSM, load_agent
from sb3_diffusion.checkpoints.old_names import old_modules
from sb3_diffusion.data.replay import TensorReplayBuffer
from sb3_diffusion.policies import guided
from tests.helpers import make_filled

OLD = Path(__file__).parent / "old"
METHODS: dict[str, Any] = {"dacer": DACER, "dps": DPS, "qsm": QSM}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("safe", [True, False])
def test_agents_of_the_version_before(name: str, safe: bool) -> None:
    """DACER's noise factor was called alpha, DPS saved an optimizer that it never stepped, buffers were in core."""
    path = OLD / f"{name}-Pendulum-v1.zip"
    recorded = np.load(OLD / "actions.npz")
    model: Any = load_agent(path, "Pendulum-v1") if safe else METHODS[name].load(path, gym.make("Pendulum-v1"), "cpu")
    actions, _ = model.predict(recorded["observations"], deterministic=True)
    # a guided chain divides differences of values by a temperature, and so rounding errors
    atol = 1e-2 if name == "dps" else 1e-4
    np.testing.assert_allclose(actions, recorded[f"{name}-Pendulum-v1"], rtol=1e-4, atol=atol)
    before = model.num_timesteps
    model.learning_starts = 0
    model.learn(4, reset_num_timesteps=False)
    assert model.num_timesteps == before + 4


def test_a_noise_factor_of_the_version_before() -> None:
    with zipfile.ZipFile(OLD / "dacer-Pendulum-v1.zip") as archive:
        assert "policy.exploration.optimizer.pth" in archive.namelist()
    model: Any = load_agent(OLD / "dacer-Pendulum-v1.zip")
    assert model.noise_factor().item() != pytest.approx(model.initial_alpha, rel=1e-6)


def test_a_noise_factor_by_the_name_of_the_paper() -> None:
    """What the weights were called between versions 0.1 and 0.2, when published agents were trained."""
    model, other = make_filled(DACER, initial_alpha=2.0), make_filled(DACER)
    members = model.get_parameters()
    members["policy"] = {name.replace("noise_factor", "alpha"): value for name, value in members["policy"].items()}
    members = {name.replace("noise_factor", "alpha"): value for name, value in members.items()}
    assert "multipliers.alpha.log_value" in members["policy"] and "policy.multipliers.alpha.optimizer" in members
    other.set_parameters(members, device="cpu")
    assert other.noise_factor().item() == model.noise_factor().item()


def names_of_modules(content: bytes) -> set[bytes]:
    """Places in the package that bytes name; the package itself stays where it is."""
    return set(re.findall(rb"sb3_diffusion\.[a-z_][\w.]*", content))


def test_files_name_no_module_of_ours(algorithm: Any, tmp_path: Path) -> None:
    model = make_filled(algorithm)
    assert model.replay_buffer_class is None
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    assert data["replay_buffer_class"] is None
    pickled = [
        base64.b64decode(value[":serialized:"])
        for value in data.values()
        if isinstance(value, dict) and ":serialized:" in value
    ]
    for content in (*members.values(), *pickled):
        assert not names_of_modules(content)


def test_buffers_name_no_module_of_ours(tmp_path: Path) -> None:
    model = make_filled(QSM, replay_buffer_class=TensorReplayBuffer)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    assert not names_of_modules((tmp_path / "buffer.pkl").read_bytes())
    model.save(tmp_path / "model.zip")
    assert not names_of_modules(zipfile.ZipFile(tmp_path / "model.zip").read("data"))
    loaded = QSM.load(tmp_path / "model.zip", device="cpu")
    assert loaded.replay_buffer_class is TensorReplayBuffer
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    assert loaded.replay_buffer.size() == model.replay_buffer.size()


@pytest.mark.parametrize("name", ["GuidedPolicy", "GuidedCnnPolicy", "GuidedActor"])
def test_a_guided_policy_of_the_version_before(name: str) -> None:
    """Also where the methods that are guided have been imported: no module may take the place of one that old files name."""
    assert DPS.policy_aliases and "sb3_diffusion.q_guidance.dps" in sys.modules
    with old_modules():
        loaded = pickle.loads(f"csb3_diffusion.core.guidance\n{name}\n.".encode())
    assert loaded is getattr(guided, name)


def test_a_buffer_of_the_version_before(tmp_path: Path) -> None:
    model = make_filled(QSM)
    content = io.BytesIO()
    pickle.dump(model.replay_buffer, content, protocol=0)
    old = content.getvalue().replace(b"csb3_diffusion\nTensorReplayBuffer", b"csb3_diffusion.core.replay\nTensorReplayBuffer")
    assert old != content.getvalue()
    (tmp_path / "buffer.pkl").write_bytes(old)
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert type(model.replay_buffer) is TensorReplayBuffer
