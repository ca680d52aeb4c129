"""The agents that runs of the user's own have saved: which one is meant, and how it acts as it was trained."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName  # a module of sb3-team-hf-integration, which rl-zoo3 brings
from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_diffusion import load_normalization
from sb3_diffusion.checkpoints.agents import NORMALIZATION
from sb3_diffusion.checkpoints.archives import open_archive
from sb3_diffusion.tensor_names import is_tensor_env

from ..environments import tensor
from ..options.which_agent import Which
from .folders import Name, owner, run_folders
from .resume import checkpoint_steps, finished, resumable
from .started_with import original
from .text_files import saved_env_kwargs

CHECKPOINTS = "rl_model_*_steps.zip"


class NoAgent(ValueError):
    """No run has the agent that is asked for; the message is one line that says why."""


@dataclass(frozen=True)
class SavedAgent:
    """
    An agent of one of the user's own runs, which is trusted.

    :param algo: Algorithm
    :param env_id: Environment
    :param folder: Log folder of the run
    :param archive: The agent
    :param env_kwargs: Arguments of the environment that overwrite those of the training
    """

    algo: str
    env_id: str
    folder: Path
    archive: Path
    env_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Path:
        """Folder with the settings of the run."""
        return self.folder / EnvironmentName(self.env_id)

    @property
    def is_last(self) -> bool:
        """Whether this is the agent at the end of the training."""
        return self.archive.name == _file_name("last", self.env_id)

    def make_env(
        self, *, n_envs: int = 1, seed: int = 0, render: bool = False, log_dir: str | None = None, norm_reward: bool = False
    ) -> VecEnv:
        """
        The environment as in training, with the normalisation that the agent was saved with. An archive of an earlier version
        may hold none; then that at the end of the run takes its place, which is said where it may not be the same.

        :param n_envs: Number of environments
        :param seed: Seed
        :param render: Whether to open a window
        :param log_dir: Folder for monitor files
        :param norm_reward: Whether to normalise rewards, too
        """
        started_with = original(self.settings)
        hyperparams, _ = get_saved_hyperparams(str(started_with), norm_reward=norm_reward, test_mode=True)
        env_kwargs = saved_env_kwargs(started_with, hyperparams) | self.env_kwargs
        n_stack = hyperparams.pop("frame_stack", 0)
        own = has_normalization(self.archive)
        if own:
            hyperparams["normalize"] = False
        elif hyperparams.get("normalize") and not self.is_last:
            print(f"{self.archive} holds no statistics of its own: the normalisation is that at the end of the run.")
        make = self._make_tensors if is_tensor_env(self.env_id) else self._make_one_by_one
        env = make(n_envs, seed, render, log_dir, hyperparams, env_kwargs)
        if own:
            env = normalized = load_normalization(self.archive, env)
            assert isinstance(normalized, VecNormalize)
            normalized.norm_reward = norm_reward
        return VecFrameStack(env, n_stack) if n_stack else env

    def _make_one_by_one(self, n_envs: int, seed: int, render: bool, log_dir: str | None, *settings: dict[str, Any]) -> VecEnv:
        hyperparams, env_kwargs = settings
        return create_test_env(
            self.env_id,
            n_envs=n_envs,
            stats_path=str(self.settings) if self.settings.is_dir() else None,
            seed=seed,
            log_dir=log_dir,
            should_render=render,
            hyperparams=hyperparams,
            env_kwargs=env_kwargs,
            vec_env_cls=DummyVecEnv,  # worker processes cost more than these simulators
        )

    def _make_tensors(self, n_envs: int, seed: int, render: bool, log_dir: str | None, *settings: dict[str, Any]) -> VecEnv:
        return tensor.make_for_agent(self.env_id, n_envs, *settings, seed=seed, log_dir=log_dir)

    def load(self, env: VecEnv, *, device: str = "auto", seed: int | None = None, attach: bool = False) -> BaseAlgorithm:
        """
        Load the agent without its replay memory.

        :param env: Its environment
        :param device: PyTorch device
        :param seed: Seed of the agent, ``None`` for that of the training
        :param attach: Whether the agent shall know the environment
        """
        algorithm = ALGOS[self.algo]
        options: dict[str, Any] = {} if seed is None else {"seed": seed}
        if issubclass(algorithm, OffPolicyAlgorithm):
            options |= {"buffer_size": 1, "optimize_memory_usage": False}
        hyperparams, _ = get_saved_hyperparams(str(original(self.settings)), test_mode=True)
        if attach or "HerReplayBuffer" in str(hyperparams.get("replay_buffer_class", "")):
            options["env"] = env
        return algorithm.load(self.archive, device=device, **options)


def has_normalization(archive: Path) -> bool:
    """
    :param archive: A saved agent
    :return: Whether the statistics with which it was trained are in the file
    """
    with open_archive(archive) as members:
        return NORMALIZATION in members.sizes


# -- which agent -----------------------------------------------------------------------------------------------------------


def find_run(
    folder: str | Path,
    algo: str,
    env_id: str,
    exp_id: int | str = 0,
    which: Which = "last",
    *,
    env_kwargs: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> SavedAgent:
    """
    Find an agent of the user's own: with ``exp_id=0`` that of the newest run which has one. What newer runs lack is said.

    :param folder: Log folder
    :param algo: Algorithm
    :param env_id: Environment
    :param exp_id: Number of the run, with ``-uuid`` number and identifier; 0 for the newest, -1 for no run folder
    :param which: Which of its agents
    :param env_kwargs: Arguments of the environment that overwrite those of the training
    :param say: Is told about runs that were passed over
    :raises NoAgent: If there is none; the message says why
    """
    parent = Path(folder, algo)
    runs = candidates(parent, env_id, exp_id)
    reasons: list[str] = []
    for run in runs:
        archive = _archive(run, which, env_id)
        if archive is not None:
            for reason in reasons:
                say(f"Passing over {reason}")
            if (who := owner(run)) is not None:
                say(f"{run} is still being trained by {who}")
            elif which == "last" and not finished(run) and checkpoint_steps(run):
                say(f"The training of {archive} was interrupted; it continues with --resume {run}")
            return SavedAgent(algo, env_id, run, archive, env_kwargs or {})
        reasons.append(f"{run}: {why_none(run, which, env_id)}")
    if not runs:
        reasons = [f"there is no run in {parent}"]
    command = f"python zoo/train.py --algo {algo} --env {env_id}"
    raise NoAgent(f"{'; '.join(reasons)}; train an agent first with: {command}")


def why_none(run: Path, which: Which, env_id: str) -> str:
    """
    :param run: Folder of a run
    :param which: Agent that it does not have
    :param env_id: Environment
    :return: Why not, in words
    """
    lacks = f"no {_file_name(which, env_id)}"
    others = sorted(path.name for path in run.glob("*.zip"))
    nearest = ""
    if isinstance(which, int) and (steps := [_steps_of(path) for path in run.glob(CHECKPOINTS)]):
        nearest = f"; the nearest is --load-checkpoint {min(steps, key=lambda step: (abs(step - which), step))}"
    instead = f" (it has {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}{nearest})" if others else ""
    if (who := owner(run)) is not None:
        return f"{lacks}, it is still being trained by {who}{instead}"
    if finished(run):
        return f"{lacks}{instead}"
    if steps := checkpoint_steps(run):
        return f"{lacks}, it was interrupted after step {steps[-1]} or later and continues with --resume {run}{instead}"
    if resumable(run):
        return f"{lacks}, it was interrupted before its first checkpoint and begins again with --resume {run}{instead}"
    return f"{lacks}, it ended before it saved anything" if not others else f"{lacks}{instead}"


def candidates(parent: Path, env_id: str, exp_id: int | str) -> list[Path]:
    """
    :param parent: Folder of the algorithm, such as ``logs/dacer``
    :param env_id: Environment
    :param exp_id: See :func:`find_run`
    :return: Folders of the runs that may be meant, the newest first
    :raises NoAgent: If there is no such run, or if several may be meant
    """
    if exp_id == -1:
        return [parent] if parent.is_dir() else []
    runs = run_folders(parent, env_id)
    if exp_id == 0:
        return runs
    env = str(EnvironmentName(env_id))
    names = [Name.parse(run.name, env) for run in runs]
    exact = [run for run, name in zip(runs, names, strict=True) if name is not None and name.exp_id == str(exp_id)]
    same = [run for run, name in zip(runs, names, strict=True) if name is not None and name.number == exp_id]
    if not exact and not same:
        known = ", ".join(name.exp_id for name in names if name is not None)
        raise NoAgent(
            f"there is no {parent / f'{env}_{exp_id}'}; --exp-id may be {known or 'nothing: there are no runs yet'}."
        )
    if not exact and len(same) > 1:
        ids = ", ".join(name.exp_id for name in names if name is not None and name.number == exp_id)
        raise NoAgent(f"--exp-id {exp_id} may mean several runs in {parent}; give one of {ids}.")
    return exact or same


def _archive(run: Path, which: Which, env_id: str) -> Path | None:
    if which == "last checkpoint":
        return max(run.glob(CHECKPOINTS), key=_steps_of, default=None)
    archive = run / _file_name(which, env_id)
    return archive if archive.is_file() else None


def _steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("_")[2])


def _file_name(which: Which, env_id: str) -> str:
    if which == "last":
        return f"{EnvironmentName(env_id)}.zip"
    return "best_model.zip" if which == "best" else f"rl_model_{'*' if which == 'last checkpoint' else which}_steps.zip"
