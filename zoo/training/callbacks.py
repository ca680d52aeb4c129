"""What a training writes while it runs: agents and evaluations, each file complete or absent, none worth the training."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common import callbacks
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, ProgressBarCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from sb3_diffusion.checkpoints.agents import save_agent
from sb3_diffusion.clock import logged_time
from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.files import write_atomically

from ..lease import Taken
from .runs.folders import RunFolder, owner
from .runs.full_disk import going_on
from .score import counting, score_of
from .warmup import is_warming_up


class Ownership(BaseCallback):
    """
    Ends a training whose folder belongs to another process by now: it was suspended, and taken for dead.

    :param folder: Folder of the run
    """

    def __init__(self, folder: RunFolder):
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        if self.folder.lost:
            raise Taken(f"{self.folder.path} was taken over by {owner(self.folder.path)}, which continues the run")
        return True


class Progress(ProgressBarCallback):
    """Stable-Baselines3's bar, which says what it counts: steps, and how many of them in a second."""

    def _on_training_start(self) -> None:
        total = self.locals["total_timesteps"] - self.model.num_timesteps
        self.pbar = callbacks.tqdm(total=total, unit=" steps", unit_scale=True)


class Checkpoints(CheckpointCallback):
    """Saves the agent every ``save_freq`` steps, with the normalisation that it has at that moment."""

    def _on_step(self) -> bool:
        if self.n_calls % self.save_freq == 0:
            with going_on("an agent of --save-freq"):
                save_agent(self.model, self._checkpoint_path(extension="zip"))
        return True


class SaveNormalization(BaseCallback):
    """
    Saves the statistics of ``VecNormalize`` where Stable-Baselines3's tools look for them.

    :param path: The file
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        normalization = self.model.get_vec_normalize_env()
        if normalization is not None:
            with going_on(self.path.name):
                save_normalization(normalization, self.path)
        return True


def save_normalization(normalization: VecNormalize, path: Path) -> None:
    """
    :param normalization: Normalised environments
    :param path: The file, of which the old content stays if the new one cannot be written
    """
    write_atomically(path, pickle.dumps(normalization))


class Evaluation(EvalCallback):
    """
    Stable-Baselines3's evaluation with its options, files and numbers. It waits for the first update; the best agent is saved
    with its normalisation, and what cannot be written does not end the training.
    """

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0 or is_warming_up(self.model):
            return True
        return self._evaluate()

    def _evaluate(self) -> bool:
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        self._is_success_buffer = []
        returns, lengths = evaluate_policy(
            self.model,
            self.eval_env,
            n_eval_episodes=self.n_eval_episodes,
            render=self.render,
            deterministic=self.deterministic,
            return_episode_rewards=True,
            warn=self.warn,
            callback=counting(self._is_success_buffer),
        )
        assert isinstance(returns, list) and isinstance(lengths, list)
        self._append(returns, lengths)
        self._log(returns, lengths)
        continue_training = True
        if self.last_mean_reward > self.best_mean_reward:
            self.best_mean_reward = self.last_mean_reward
            continue_training = self._on_new_best()
        return continue_training and (self.callback is None or self._on_event())

    def _append(self, returns: list[float], lengths: list[int]) -> None:
        if self.log_path is None:
            return
        self.evaluations_timesteps.append(logged_time(self.model))
        self.evaluations_results.append(returns)
        self.evaluations_length.append(lengths)
        columns: dict[str, Any] = {
            "timesteps": self.evaluations_timesteps,
            "results": self.evaluations_results,
            "ep_lengths": self.evaluations_length,
        }
        if self._is_success_buffer:
            self.evaluations_successes.append(self._is_success_buffer)
            columns["successes"] = self.evaluations_successes
        content = io.BytesIO()
        np.savez(content, **columns)
        with going_on("evaluations.npz"):
            write_atomically(f"{self.log_path}.npz", content.getvalue())

    def _log(self, returns: list[float], lengths: list[int]) -> None:
        self.last_mean_reward = float(np.mean(returns))
        lines = [
            f"Eval num_timesteps={logged_time(self.model)}, episode_reward={np.mean(returns):.2f} +/- {np.std(returns):.2f}",
            f"Episode length: {np.mean(lengths):.2f} +/- {np.std(lengths):.2f}",
        ]
        self.logger.record("eval/mean_reward", self.last_mean_reward)
        self.logger.record("eval/mean_ep_length", np.mean(lengths))
        score = score_of(self.model, returns)  # a rate of successes follows, under the name that it has in SB3
        if score:
            lines.append(f"Normalised score: {np.mean(score['scores']):.1f}")
            self.logger.record("eval/normalized_score", np.mean(score["scores"]))
        if self._is_success_buffer:
            rate = np.mean(self._is_success_buffer)
            lines.append(f"Success rate: {100 * rate:.2f}%")
            self.logger.record("eval/success_rate", rate)
        self._say("\n".join(lines))
        self.logger.record("time/total_timesteps", logged_time(self.model), exclude="tensorboard")
        self.logger.dump(logged_time(self.model))

    def _on_new_best(self) -> bool:
        self._say("New best mean reward!")
        if self.best_model_save_path is not None:
            with going_on("best_model.zip"):
                save_agent(self.model, Path(self.best_model_save_path, "best_model.zip"))
        return self.callback_on_new_best is None or self.callback_on_new_best.on_step()

    def _say(self, text: str) -> None:
        if self.verbose > 0:
            with going_on("the output"):
                print(text)


class EvaluationBetweenRollouts(Evaluation):
    """
    The same for a simulator that allows one simulation only: in the environments of the training, between two rollouts, after
    which new episodes begin everywhere.
    """

    _evaluated_at = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.eval_freq <= 0 or self.n_calls - self._evaluated_at < self.eval_freq:
            return
        self._evaluated_at = self.n_calls
        self._evaluate()
        model: Any = self.model
        model._last_obs = self.training_env.reset()
        model._last_episode_starts = np.ones(self.training_env.num_envs, dtype=bool)
        simulation = self.training_env.unwrapped
        assert isinstance(simulation, TensorVecEnv)
        simulation.episodes.pop()  # those of the evaluation are none of the training's
        if getattr(model, "random_phases", False):
            simulation.randomize_phases()
