"""
Isaac Lab, releases 2.3 and 3.0, by what its environments do; nothing of it is imported here.

The contract was read in the published packages: an environment of Isaac Lab is many environments, speaks tensors, begins ended
episodes anew within the same step, and keeps one dictionary of extras for life.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor.adapters.groups import ObservationGroups
from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.envs.tensor.observations import Observation, box
from sb3_diffusion.envs.tensor.step import TensorStep
from sb3_diffusion.names import choice

ActionBound = float | Sequence[float] | None


class IsaacLabVecEnv(TensorVecEnv):
    """
    An environment of Isaac Lab as a :class:`~sb3_diffusion.envs.tensor.contract.TensorVecEnv`.

    Its actions are unbounded, though their terms are scaled so that they are about one. An agent whose actions lie in a box
    needs one: ``action_bound``.

    What an episode looked like at its end is known to release 3.0 if ``cfg.compute_final_obs`` was set before the environment
    was made (:func:`~sb3_diffusion.envs.tensor.adapters.isaaclab_launch.make_isaaclab` does), and to release 2.3 never.
    Time-outs of a task whose ``cfg.is_finite_horizon`` is set count as terminations.

    :param env: What ``gymnasium.make`` returned
    :param group: Observation group of the actor
    :param critic_group: Group that only critics may read, such as ``"critic"``; see
        :class:`~sb3_diffusion.envs.tensor.adapters.groups.ObservationGroups`
    :param action_bound: Largest absolute value of an action, one number or one for each dimension; ``None`` where the
        environment has bounds of its own. Own bounds that are narrower hold anyway.
    :param final_obs: ``"auto"``: last observations of episodes are used if the environment computes them; ``True``: it has to;
        ``False``: they are not used
    """

    def __init__(
        self,
        env: Any,
        group: str = "policy",
        critic_group: str | None = None,
        action_bound: ActionBound = 1.0,
        final_obs: bool | str = "auto",
    ):
        self.env = env
        self.simulator = env.unwrapped
        self._groups = ObservationGroups(self.simulator.single_observation_space, group, critic_group)
        self._final_obs = choice("final_obs", final_obs, ("auto", True, False))
        if final_obs is True and not self._computes_final_observations():
            raise ValueError(
                "final_obs=True, but this environment computes no final observations; set cfg.compute_final_obs = True before "
                "gymnasium.make (Isaac Lab 3.0 and later), or pass final_obs='auto'."
            )
        super().__init__(
            num_envs=self.simulator.num_envs,
            observation_space=self._groups.space,
            action_space=_action_box(self.simulator.single_action_space, action_bound),
            device=self.simulator.device,
            privileged=self._groups.privileged,
        )
        self._warn_of_final_observations(group, critic_group)

    def reset_simulator(self, seed: int | None) -> Observation:
        """
        :param seed: Seed of the simulator
        :return: The first observations
        """
        observed, _ = self.env.reset(seed=seed)
        return self._groups.pick(observed)

    def step_simulator(self, actions: th.Tensor) -> TensorStep:
        """
        :param actions: Actions within the bounds
        :return: What happened
        """
        observed, reward, terminated, truncated, extras = self.env.step(actions)
        terminated, truncated = self._ends(terminated, truncated)
        # the entry stays from earlier steps, so its presence says nothing; it is of this step where an episode ended in it
        final = extras.get("final_obs") if self._final_obs and self._computes_final_observations() else None
        known = final is not None and self._fits(final)
        return TensorStep(
            observation=self._groups.pick(observed),
            reward=reward.clone(),
            terminated=terminated,
            truncated=truncated,
            final_observation=self._groups.pick(final) if known else None,  # type: ignore[arg-type]
            final_valid=(terminated | truncated) if known else th.zeros_like(terminated),
            log=dict(extras.get("log", {})),
        )

    def read_limit(self) -> int:
        """
        :return: Steps after which an episode is truncated
        """
        return int(self.simulator.max_episode_length)

    def write_limit(self, steps: int) -> None:
        """
        :param steps: Steps after which an episode is truncated
        """
        # the simulator divides seconds by the length of a step and rounds up
        self.simulator.cfg.episode_length_s = (steps - 0.5) * self.simulator.step_dt

    @property
    def episode_length_buf(self) -> th.Tensor:  # type: ignore[override]
        """Steps that each running episode has taken."""
        return self.simulator.episode_length_buf

    def close(self) -> None:
        """Close the environment; the application that it runs in goes on."""
        self.env.close()

    def _owners(self) -> list[Any]:
        return [self, self.simulator]

    def _ends(self, terminated: th.Tensor, truncated: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Copies of both flags, with the time-outs of a finite horizon counted as terminations."""
        if getattr(self.simulator.cfg, "is_finite_horizon", False):
            return terminated | truncated, th.zeros_like(truncated)
        return terminated.clone(), truncated & ~terminated

    def _computes_final_observations(self) -> bool:
        return bool(getattr(self.simulator.cfg, "compute_final_obs", False))

    def _fits(self, final: Any) -> bool:
        if self._groups.fits(final, self.num_envs):
            return True
        warnings.warn("final_obs of this environment is not arranged as its observations are, and is not used.", stacklevel=4)
        return False

    def _warn_of_final_observations(self, group: str, critic_group: str | None) -> None:
        if not self._final_obs:
            return
        if not self._computes_final_observations():
            warnings.warn(
                "This environment does not tell the last observation of an episode, so that time-outs are bootstrapped from "
                "the one before. Isaac Lab 3.0 tells it if cfg.compute_final_obs is set before gymnasium.make.",
                stacklevel=3,
            )
        elif terms := _terms_with_history(self.simulator.cfg, (group, critic_group)):
            warnings.warn(
                f"Final observations lack the newest frame of terms that have a history: {', '.join(terms)}. Pass "
                "final_obs=False to bootstrap time-outs from the observation before.",
                stacklevel=3,
            )


def _action_box(space: Any, bound: ActionBound) -> spaces.Box:
    """The box of actions: the given bounds, and the environment's own where they are narrower."""
    shape = tuple(space.shape)
    low, high = (np.broadcast_to(np.asarray(limit, np.float32), shape) for limit in (space.low, space.high))
    if bound is not None:
        try:
            limit = np.broadcast_to(np.asarray(bound, np.float32), shape)
        except ValueError as error:
            raise ValueError(f"action_bound={bound!r} does not fit actions of the shape {shape}; pass one number.") from error
        if not (np.isfinite(limit).all() and (limit > 0).all()):
            raise ValueError(f"action_bound={bound!r} must be finite and positive.")
        low, high = np.maximum(low, -limit), np.minimum(high, limit)
    elif not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("action_bound=None, but the actions of this environment have no bounds; pass action_bound=1.0.")
    return box(shape, low, high)


def _terms_with_history(cfg: Any, groups: Sequence[str | None]) -> list[str]:
    """Observation terms that remember earlier frames, as ``group/term``; those of direct tasks have no configuration."""
    observations = getattr(cfg, "observations", None)
    found = []
    for name in filter(None, groups):
        group = observations.get(name) if isinstance(observations, dict) else getattr(observations, name, None)
        terms = getattr(group, "terms", None) or (vars(group) if hasattr(group, "__dict__") else {})
        for term, settings in terms.items():
            frames = getattr(group, "history_length", None) or getattr(settings, "history_length", None)
            if hasattr(settings, "func") and frames:
                found.append(f"{name}/{term}")
    return found
