"""Videos: small, playable, and never a reason to fail."""

import re
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from sb3_diffusion import SDAC, save_agent
from zoo.hub import record, video


def pictures(count: int) -> list[np.ndarray]:
    """A bright square that moves over noise."""
    noise = np.random.default_rng(0).integers(0, 60, size=(120, 160, 3), dtype=np.uint8)
    frames = [noise.copy() for _ in range(count)]
    for step, frame in enumerate(frames):
        frame[40:60, step : step + 20] = 255
    return frames


@pytest.mark.parametrize("max_bytes", [20_000, 100_000])
def test_size_is_kept(max_bytes: int, tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v3")
    pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "replay.mp4"
    video.encode(25.0, 60, iter(pictures(60)), path, max_bytes)
    assert 1_000 < path.stat().st_size <= max_bytes
    frames = list(imageio.imiter(path))
    assert len(frames) == 60
    assert frames[0].shape == (120, 160, 3)
    assert imageio.immeta(path)["codec"] == "h264"
    square = frames[50][45:55, 55:65].mean()
    assert square > 2 * frames[50][5:30].mean()


def test_a_renderer_that_crashes_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\necho 'the driver is upset' >&2\nkill -SEGV $$\n", encoding="utf-8")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    monkeypatch.delenv("DISPLAY", raising=False)
    target = tmp_path / "replay.mp4"
    target.write_bytes(b"an old video")
    assert record.record(tmp_path, "Pendulum-v1", target) == "the driver is upset"
    assert not target.exists()


def test_no_agent_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert "contains no agent for Pendulum-v1" in record.record(tmp_path, "Pendulum-v1", tmp_path / "replay.mp4")


@pytest.mark.parametrize(
    ("mujoco_gl", "display", "expected"), [("osmesa", "", ("",)), ("", ":0", ("",)), ("", "", ("egl", "osmesa"))]
)
def test_own_choice_of_the_renderer_comes_first(
    mujoco_gl: str, display: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", mujoco_gl)
    monkeypatch.setenv("DISPLAY", display)
    if sys.platform.startswith("linux"):
        assert video.backends() == expected


def test_recording_of_an_agent(tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    imageio = pytest.importorskip("imageio.v3")
    policy_kwargs = {"net_arch": [16], "diffusion_steps": 2}
    model = SDAC("DiffusionPolicy", gym.make("Pendulum-v1"), buffer_size=10, policy_kwargs=policy_kwargs)
    save_agent(model, tmp_path / "sdac-Pendulum-v1.zip", optimizer_state=False)
    target = tmp_path / "replay.mp4"
    problem = record.record(tmp_path, "Pendulum-v1", target, steps=20, max_bytes=50_000)
    if re.search("pip install|driver|device", problem):
        pytest.skip(problem)
    assert problem == ""
    assert len(list(imageio.imiter(target))) == 20
    assert target.stat().st_size <= 50_000
