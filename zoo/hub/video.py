"""
Videos of agents: pictures of an environment, their encoding, and a process of its own to draw them in.

The simulators' renderers fail in many ways where there is no display, some of which end the process. ``draw_elsewhere``
therefore runs a command that draws in another process, and tries the ways of drawing without a screen one after the other.
"""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAX_FPS = 30
# Without a display MuJoCo draws with the graphics card (or Mesa) by EGL, or in software by OSMesa.
OFF_SCREEN = ("egl", "osmesa")
WRONG_ARGUMENTS = 2
"""Exit status of a command that no other way of drawing helps."""
GIF_FILTER = "fps=10,split[a][b];[a]palettegen[p];[b][p]paletteuse"


def backends() -> tuple[str, ...]:
    """Values of MUJOCO_GL to try; the user's own choice, or a display, comes first and alone."""
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY") or not sys.platform.startswith("linux"):
        return ("",)
    return OFF_SCREEN


def draw_elsewhere(command: Sequence[str], *, timeout: float | None = None, show: bool = False) -> str:
    """
    Run a command that draws, until a way of drawing works.

    :param command: Command and arguments
    :param timeout: Seconds that one try may take
    :param show: Whether its output is shown
    :return: Why it does not work; empty if it does
    """
    reason = "no renderer"
    for backend in backends():
        environment = {**os.environ, **({"MUJOCO_GL": backend} if backend else {})}
        try:
            result = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=None if show else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            reason = f"recording took more than {timeout:g} s"
            continue
        if result.returncode == 0:
            return ""
        reason = _reason(result)
        if result.returncode == WRONG_ARGUMENTS or "pip install" in reason:  # a package is missing
            break
    return reason


def _reason(result: "subprocess.CompletedProcess[str]") -> str:
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    problems = [line for line in lines if "Error" in line.partition(":")[0] or "error:" in line]
    return (problems or lines or [f"the recorder ended with status {result.returncode}"])[-1][:300]


def frame_rate(env: Any) -> tuple[float, int]:
    """
    How an environment is drawn, at most ``MAX_FPS`` times per second.

    :param env: Vector environment
    :return: Pictures per second, and steps between two pictures
    """
    rate = env.get_attr("metadata")[0].get("render_fps") or MAX_FPS
    every = max(1, round(rate / MAX_FPS))
    return rate / every, every


def pictures(model: Any, env: Any, steps: int, *, deterministic: bool = True) -> Iterator[np.ndarray]:
    """
    Let an agent act and draw it.

    :param model: Agent
    :param env: Vector environment of one environment that draws ``rgb_array``
    :param steps: Number of steps
    :param deterministic: Kind of the actions
    :return: Pictures (height, width, 3)
    """
    _, every = frame_rate(env)
    observation: Any = env.reset()
    state, episode_start = None, np.ones(1, dtype=bool)
    for step in range(steps):
        if step % every == 0:
            picture = np.asarray(env.get_images()[0])
            if picture.ndim != 3:
                raise ValueError("the environment draws no pictures; its render_mode has to be rgb_array")
            height, width = (size // 2 * 2 for size in picture.shape[:2])  # H.264 stores colours for pairs of pixels
            yield np.ascontiguousarray(picture[:height, :width])
        action, state = model.predict(observation, state, episode_start, deterministic=deterministic)
        observation, _, episode_start, _ = env.step(action)


def label(picture: np.ndarray, text: str) -> np.ndarray:
    """
    Write a title on a picture.

    :param picture: (height, width, 3)
    :param text: The title
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(12, picture.shape[0] // 20))
    left, top, right, bottom = draw.textbbox((10, 8), text, font=font)
    draw.rectangle((left - 6, top - 5, right + 6, bottom + 5), fill=(0, 0, 0))
    draw.text((10, 8), text, fill=(255, 255, 255), font=font)
    return np.asarray(image)


def encode(rate: float, n_pictures: int, frames: Iterable[np.ndarray], target: Path, max_bytes: int) -> None:
    """
    Write a video (mp4, H.264).

    :param rate: Pictures per second
    :param n_pictures: Number of pictures
    :param frames: Pictures (height, width, 3)
    :param target: The video; it appears when it is complete
    :param max_bytes: Size that the video should not exceed; it decides the bit rate
    """
    encoder = _encoder()
    bits = int(0.8 * 8 * max_bytes * rate / n_pictures)  # some room for the container
    quality = ["-crf", "26", "-maxrate", str(bits), "-bufsize", str(bits), "-preset", "slow", "-movflags", "+faststart"]
    frames = iter(frames)
    first = next(frames)
    size = (first.shape[1], first.shape[0])
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    writer = encoder.write_frames(
        str(partial), size, fps=rate, codec="libx264", quality=None, macro_block_size=2, output_params=quality
    )
    try:
        with contextlib.closing(writer):
            writer.send(None)
            for picture in itertools.chain([first], frames):
                writer.send(picture)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def to_gif(video: Path) -> Path:
    """
    Make an animated GIF of a video.

    :param video: The video
    :return: The GIF, beside it
    """
    target = video.with_suffix(".gif")
    command = [_encoder().get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", str(video), "-filter_complex", GIF_FILTER]
    result = subprocess.run([*command, str(target)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ValueError(f"{target} could not be written: {(result.stderr.splitlines() or ['unknown reason'])[-1]}")
    return target


def _encoder() -> Any:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        install = 'pip install -c constraints.txt -e ".[video]"'
        raise ValueError(f"videos need the package imageio-ffmpeg; install it with: {install}") from None
    return imageio_ffmpeg
