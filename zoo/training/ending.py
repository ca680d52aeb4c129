"""The end of a training: the agent is saved and evaluated, and what to type next is said."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_sb3 import EnvironmentName  # a module of sb3-team-hf-integration, which rl-zoo3 brings
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_diffusion.checkpoints.agents import save_agent
from sb3_diffusion.files import write_atomically

from .callbacks import save_normalization
from .options.commands import command
from .options.registry import task_of
from .runs.folders import Name
from .runs.full_disk import going_on
from .runs.protocols import Protocol, of_deterministic_actions
from .runs.resume import how_to_continue
from .score import counting, in_words, score_of

FINAL_EVALUATION = "final_evaluation.json"


class Ending:
    """
    What is done with an agent once its training has ended, or was stopped.

    :param model: The agent
    :param folder: Log folder of the run
    :param env_name: Environment
    :param last_step: Step of the newest checkpoint for ``--resume``, if any
    """

    def __init__(self, model: BaseAlgorithm, folder: Path, env_name: EnvironmentName, last_step: int | None):
        self.model, self.folder, self.env_name, self.last_step = model, folder, env_name, last_step

    @property
    def archive(self) -> Path:
        """The agent's file."""
        return self.folder / f"{self.env_name}.zip"

    def save(self, with_replay_buffer: bool) -> None:
        """
        Save the agent, for Stable-Baselines3's algorithms with what load_agent needs, and what belongs to it.

        :param with_replay_buffer: Whether its memory is saved, too
        """
        try:
            save_agent(self.model, self.archive)
            if (normalization := self.model.get_vec_normalize_env()) is not None:
                save_normalization(normalization, self.folder / self.env_name / "vecnormalize.pkl")
        except OSError as error:
            problem = f"the agent could NOT be saved as {self.archive} ({error}). {self.how_to_continue()}"
            print(f"train.py: error: {problem}", file=sys.stderr)
            raise SystemExit(1) from None
        print(f"Agent saved as {self.archive}")
        if with_replay_buffer and hasattr(self.model, "save_replay_buffer"):
            with going_on("replay_buffer.pkl"):
                self.model.save_replay_buffer(self.folder / "replay_buffer.pkl")

    def evaluate(self, env: VecEnv, n_episodes: int, deterministic: bool, budget: int) -> None:
        """
        Print the return of the trained agent, and write every episode to a file of the run. Where deterministic actions have
        noise, the agent is scored with its own and then with the other one (:mod:`~zoo.training.runs.protocols`).

        :param env: Environment, which is closed afterwards
        :param n_episodes: Number of episodes
        :param deterministic: Kind of the actions
        :param budget: Steps that the training was to have
        """
        own, *others = of_deterministic_actions(self.model) if deterministic else [Protocol(False)]
        successes: list[bool] = []
        returns, lengths = self._play(env, n_episodes, own, counting(successes))
        evaluation = {
            "timesteps": self.model.num_timesteps + getattr(self.model, "_n_offline_updates", 0),
            "budget": budget,
            "deterministic": deterministic,
            "returns": [float(value) for value in returns],
            "lengths": [int(value) for value in lengths],
            **({} if own.noise is None else {"evaluation_noise": own.noise}),
            **self._data(),
            **score_of(self.model, returns, successes),
        }
        for other in others:
            evaluation["other_noise"] = self._scored_with(other, env, n_episodes)
        env.close()
        with going_on(FINAL_EVALUATION):
            write_atomically(self.folder / FINAL_EVALUATION, json.dumps(evaluation).encode())
        print(
            f"Evaluation after {self._age()}: mean reward {np.mean(returns):.2f} +/- {np.std(returns):.2f} "
            f"over {own.episodes(n_episodes)}"
        )
        if other_noise := evaluation.get("other_noise"):
            again = other_noise["returns"]
            print(f"With {other_noise['evaluation_noise']} noise: {np.mean(again):.2f} +/- {np.std(again):.2f}")
        if "scores" in evaluation:
            print(in_words(evaluation))
        if "task" in evaluation:
            print(f"Evaluated in {evaluation['task']}")

    def _data(self) -> dict[str, Any]:
        """What a run that learned from data says beside its returns."""
        identity = getattr(self.model, "dataset_identity", None)
        if identity is None:
            return {}
        learned = {"offline_updates": self.model._n_offline_updates, "dataset": identity}  # type: ignore[attr-defined]
        return {**learned, "task": task_of(self.env_name.gym_id)}

    def _age(self) -> str:
        updates, steps = getattr(self.model, "_n_offline_updates", 0), self.model.num_timesteps
        on_data = [f"{updates} updates on data"] if updates else []
        return " and ".join([*on_data, *([f"{steps} steps"] if steps or not updates else [])])

    def _scored_with(self, protocol: Protocol, env: VecEnv, n_episodes: int) -> dict[str, Any]:
        returns, lengths = self._play(env, n_episodes, protocol)
        return {
            "evaluation_noise": protocol.noise,
            "returns": [float(value) for value in returns],
            "lengths": [int(value) for value in lengths],
        }

    def _play(
        self, env: VecEnv, n_episodes: int, protocol: Protocol, callback: Callable[..., None] | None = None
    ) -> tuple[list[Any], list[Any]]:
        if self.model.get_vec_normalize_env() is not None:
            training_env = self.model.get_env()
            assert training_env is not None
            sync_envs_normalization(training_env, env)
        how: dict[str, Any] = {
            "n_eval_episodes": n_episodes,
            "deterministic": protocol.deterministic,
            "return_episode_rewards": True,
            "warn": False,
            "callback": callback,
        }
        with protocol.followed_by(self.model):
            returns, lengths = evaluate_policy(self.model, env, **how)
        assert isinstance(returns, list) and isinstance(lengths, list)
        return returns, lengths

    def how_to_continue(self) -> str:
        """What to type to go on with a training that was stopped."""
        return how_to_continue(self.folder, self.last_step, self.model.num_timesteps)

    def say_how_to_watch(self, algo: str, log_folder: str, gym_packages: Sequence[str]) -> None:
        """
        :param algo: Name of the algorithm
        :param log_folder: Folder of all runs
        :param gym_packages: Modules that were imported for the training
        """
        if not self.archive.is_file():
            return
        name = Name.parse(self.folder.name, self.env_name)
        exp_id = [] if name is None else ["--exp-id", name.exp_id]
        imported = ["--gym-packages", *gym_packages] if gym_packages else []
        words = ("--algo", algo, "--env", self.env_name.gym_id, *imported, "-f", log_folder)
        print(f"Watch it with: {command('enjoy', *words, *exp_id)}")
