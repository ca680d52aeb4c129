"""
Record a published agent as a small video: ``python zoo/hub/record.py zoo/pretrained/sdac-Pendulum-v1 --env Pendulum-v1``.

``zoo/record.py`` records runs of your own.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    __package__ = ".".join(Path(__file__).resolve().parts[-3:-1])

from ..training.options.command_line import CommandParser, whole_number
from ..training.options.errors import mistakes
from ..training.options.registry import check_environment, register_algorithms
from .video import draw_elsewhere, encode, frame_rate, pictures

PROG = "record.py"
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
    target.unlink(missing_ok=True)
    reason = draw_elsewhere(command, timeout=TIMEOUT)
    if not reason and target.is_file():
        size = target.stat().st_size
        if size <= max_bytes:
            return ""
        reason = f"the video has {size} bytes, more than {max_bytes}"
    target.unlink(missing_ok=True)
    return reason or "the recorder wrote nothing"


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


def record_here(args: argparse.Namespace) -> None:
    """
    Record in this process.

    :param args: Command line
    """
    from .published import PublishedAgent  # the parent process needs none of this

    agent = PublishedAgent(args.folder, args.env)
    env = agent.make_env(seed=args.seed, render_mode="rgb_array")
    model = agent.load(env, device="cpu")
    rate, every = frame_rate(env)
    encode(rate, -(-args.n_timesteps // every), pictures(model, env, args.n_timesteps), args.output, args.max_bytes)


def main() -> None:
    """Record in this process."""
    args = parse_arguments()
    with mistakes(PROG, args.traceback):
        check_environment(args.env)
        from sb3_diffusion.envs import quiet_mujoco  # takes seconds

        quiet_mujoco()
        register_algorithms()
        record_here(args)


if __name__ == "__main__":
    main()
