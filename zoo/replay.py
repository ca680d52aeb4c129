"""
Record a published agent as a small video: ``python zoo/replay.py zoo/pretrained/sdac-Pendulum-v1 --env Pendulum-v1``.

The simulators' renderers fail in many ways where there is no display, some of which end the process. ``record`` therefore
records in a process of its own and tries the ways of drawing without a screen one after the other.
"""

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

import numpy as np

from .training.command_line import CommandParser, whole_number
from .training.errors import mistakes
from .training.registry import check_environment, register_algorithms

PROG = "replay.py"
MAX_FPS = 30
# Without a display MuJoCo draws with the graphics card (or Mesa) by EGL, or in software by OSMesa.
OFF_SCREEN = ("egl", "osmesa")
TIMEOUT = 600.0


def record(folder: Path, env_id: str, target: Path, *, steps: int = 1000, max_bytes: int = 2_000_000, seed: int = 0) -> str:
    """
    Record one agent in another process. Nothing that goes wrong there is an error here.

    :param folder: Agent in the layout of the Hub
    :param env_id: Environment
    :param target: The video (mp4, H.264)
    :param steps: Number of steps, less if the video would be too long
    :param max_bytes: Largest size of the video; a video that is larger is thrown away
    :param seed: Seed of the environment
    :return: Why there is no video; empty if there is one
    """
    command = [sys.executable, str(Path(__file__).resolve()), str(folder), "--env", env_id, "--output", str(target)]
    command += ["--n-timesteps", str(steps), "--max-bytes", str(max_bytes), "--seed", str(seed)]
    reason = "no renderer"
    for backend in _backends():
        environment = {**os.environ, **({"MUJOCO_GL": backend} if backend else {})}
        target.unlink(missing_ok=True)
        try:
            result = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            reason = f"recording took more than {TIMEOUT:g} s"
            continue
        if result.returncode == 0 and target.is_file():
            size = target.stat().st_size
            if size <= max_bytes:
                return ""
            reason = f"the video has {size} bytes, more than {max_bytes}"
        else:
            lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
            problems = [line for line in lines if "Error" in line.partition(":")[0] or "error:" in line]
            reason = (problems or lines or [f"the recorder ended with status {result.returncode}"])[-1][:300]
            if "pip install" in reason:  # a package is missing: no way of drawing helps
                break
    target.unlink(missing_ok=True)
    return reason


def _backends() -> tuple[str, ...]:
    """Values of MUJOCO_GL to try; the user's own choice, or a display, comes first and alone."""
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY") or not sys.platform.startswith("linux"):
        return ("",)
    return OFF_SCREEN


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = CommandParser(prog=PROG, description=__doc__)
    parser.add_argument("folder", type=Path, help="agent in the layout of the Hub")
    parser.add_argument("--env", required=True, help="environment id")
    parser.add_argument("-o", "--output", type=Path, default=Path("replay.mp4"), help="the video")
    parser.add_argument("-n", "--n-timesteps", type=whole_number(1), default=1000, help="number of steps")
    parser.add_argument("--max-bytes", type=whole_number(1), default=2_000_000, help="size to aim at")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed")
    return parser.parse_args()


def play(folder: Path, env_id: str, steps: int, seed: int) -> tuple[float, int, Iterator[np.ndarray]]:
    """
    Let an agent act and draw it, at most ``MAX_FPS`` times per second.

    :param folder: Agent in the layout of the Hub
    :param env_id: Environment
    :param steps: Number of steps
    :param seed: Seed of the environment
    :return: Pictures per second, number of pictures, the pictures (height, width, 3)
    """
    from .hub.published import PublishedAgent  # the parent process needs none of this

    agent = PublishedAgent(folder, env_id)
    env = agent.make_env(seed=seed, render_mode="rgb_array")
    model = agent.load(env, device="cpu")
    rate = env.get_attr("metadata")[0].get("render_fps") or MAX_FPS
    every = max(1, round(rate / MAX_FPS))

    def draw() -> Iterator[np.ndarray]:
        observation: Any = env.reset()
        state, episode_start = None, np.ones(1, dtype=bool)
        for step in range(steps):
            if step % every == 0:
                picture = np.asarray(env.get_images()[0])
                height, width = (size // 2 * 2 for size in picture.shape[:2])  # H.264 stores colours for pairs of pixels
                yield np.ascontiguousarray(picture[:height, :width])
            action, state = model.predict(observation, state, episode_start, deterministic=True)
            observation, _, episode_start, _ = env.step(action)

    return rate / every, -(-steps // every), draw()


def encode(rate: float, n_pictures: int, pictures: Iterator[np.ndarray], target: Path, max_bytes: int) -> None:
    """
    :param rate: Pictures per second
    :param n_pictures: Number of pictures
    :param pictures: Pictures (height, width, 3)
    :param target: The video
    :param max_bytes: Size that the video should not exceed; it decides the bit rate
    """
    import imageio_ffmpeg

    bits = int(0.8 * 8 * max_bytes * rate / n_pictures)  # some room for the container
    quality = ["-crf", "26", "-maxrate", str(bits), "-bufsize", str(bits), "-preset", "slow", "-movflags", "+faststart"]
    first = next(pictures)
    size = (first.shape[1], first.shape[0])
    writer = imageio_ffmpeg.write_frames(
        str(target), size, fps=rate, codec="libx264", quality=None, macro_block_size=2, output_params=quality
    )
    writer.send(None)
    for picture in itertools.chain([first], pictures):
        writer.send(picture)
    writer.close()


def main() -> None:
    """Record in this process."""
    args = parse_arguments()
    with mistakes(PROG, args.traceback):
        check_environment(args.env)
        from sb3_diffusion.envs import quiet_mujoco  # takes seconds

        quiet_mujoco()
        register_algorithms()
        encode(*play(args.folder, args.env, args.n_timesteps, args.seed), args.output, args.max_bytes)


if __name__ == "__main__":
    main()
