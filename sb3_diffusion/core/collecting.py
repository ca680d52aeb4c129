"""How on-policy algorithms collect rollouts: in tensors, on the device, without waiting for it in between."""

import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from typing_extensions import override

from sb3_diffusion.data.advantages import following_values, generalized_advantages, standardized
from sb3_diffusion.data.rollout import RolloutBatch, TensorRolloutBuffer
from sb3_diffusion.envs.tensor.adapters.vec_env import VecEnvAdapter, as_tensor_env
from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.envs.tensor.observations import each, to_tensor
from sb3_diffusion.envs.tensor.step import TensorStep
from sb3_diffusion.processes import all_agree, n_processes


class CollectsRollouts(OnPolicyAlgorithm):
    """
    An on-policy algorithm whose rollouts are tensors; a base class of
    :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`.
    """

    rows_at_once: ClassVar[int] = 16_384
    """Rows that are looked at together after a rollout, so that its size does not show in the memory."""
    rollout_buffer: TensorRolloutBuffer  # type: ignore[assignment]
    timeout_bootstrap: str
    normalize_advantage: bool | str
    normalize_observations: bool
    random_phases: bool
    _last_obs: Any

    @abstractmethod
    def act(self, observations: Any) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """
        What the policy does while it collects a rollout; called without gradients.

        :param observations: Batch of observations
        :return: Actions ``(batch, action_dim)`` in normalised units, not cut off, and what to remember of them by name,
            ``(batch, ...)``
        """

    def remember(self, batch: RolloutBatch) -> dict[str, th.Tensor]:
        """
        Further quantities of the policy that acted, computed when the rollout is complete, before the first update; called
        without gradients.

        :param batch: Rows of the rollout
        :return: Quantities by name, ``(batch, ...)``
        """
        return {}

    def _setup_collecting(self, n_steps: int) -> None:
        self.rollout_buffer = TensorRolloutBuffer(n_steps, self.n_envs, self.device)
        self._tensor_env: TensorVecEnv | None = None
        box: Any = self.action_space
        low, high = (th.as_tensor(np.asarray(bound, np.float32).ravel()) for bound in (box.low, box.high))
        self._action_center, self._action_reach = (0.5 * (high + low)).to(self.device), (0.5 * (high - low)).to(self.device)
        normalizer = self._vec_normalize_env
        if self.normalize_observations and normalizer is not None and normalizer.norm_obs:
            warnings.warn(
                "normalize_observations=True standardises what VecNormalize has standardised already; pass "
                "normalize_observations=False, or norm_obs=False to VecNormalize.",
                stacklevel=4,
            )

    @property
    def tensor_env(self) -> TensorVecEnv:
        """The environment, or what makes tensors of it."""
        assert self.env is not None
        made = self._tensor_env
        if made is None or (made is not self.env and getattr(made, "venv", None) is not self.env):
            self._tensor_env = made = as_tensor_env(self.env, self.device)
        return made

    @override
    def _setup_learn(self, total_timesteps: int, callback: MaybeCallback = None, *args: Any, **kwargs: Any) -> Any:
        resets = (args[0] if args else kwargs.get("reset_num_timesteps", True)) or self._last_obs is None
        prepared = super()._setup_learn(total_timesteps, callback, *args, **kwargs)
        if resets and self.random_phases:
            self.tensor_env.randomize_phases()
        return prepared

    @override
    def collect_rollouts(  # type: ignore[override]  # another buffer
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: TensorRolloutBuffer,
        n_rollout_steps: int | None = None,
    ) -> bool:
        """
        Collect a rollout.

        :param env: The environment of the model
        :param callback: Called at every step, and at the beginning and end of the rollout
        :param rollout_buffer: What to fill; its size counts
        :param n_rollout_steps: Not used
        :return: Whether the rollout is complete; a callback may end it
        """
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        tensor_env = self.tensor_env  # asked for here: a callback may have put the model back to a checkpoint
        observation = tensor_env.last_observation = self._on_device(self._last_obs)
        for step in range(rollout_buffer.n_steps):
            with th.no_grad():
                actions, fields = self.act(observation)
                happened = tensor_env.step_tensor(self._executed(actions))
            self.num_timesteps += tensor_env.num_envs * n_processes()
            infos = tensor_env.infos if isinstance(tensor_env, VecEnvAdapter) else ()
            rewards, dones, new_obs = happened.reward, happened.done, happened.observation
            callback.update_locals(locals())
            if not callback.on_step():
                all_agree(False, self.device)  # the others hear of it at the end of their rollout
                return False
            if infos:
                self._update_info_buffer(list(infos), dones.cpu().numpy())  # type: ignore[arg-type]
            rollout_buffer.add(step, observations=observation, actions=actions, **self._told(happened))
            rollout_buffer.add_fields(step, fields)
            self._last_obs = observation = self._on_device(happened.observation)
        if not all_agree(True, self.device):
            return False
        self._count_episodes(tensor_env)
        self._value_rollout(observation)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _on_device(self, observation: Any) -> Any:
        array = observation if not isinstance(observation, dict) else next(iter(observation.values()))
        if isinstance(array, np.ndarray):
            return to_tensor(observation, self.device)
        return each(lambda tensor: tensor.to(self.device, non_blocking=True), observation)

    def _executed(self, actions: th.Tensor) -> th.Tensor:
        """Actions in units of the environment, within its bounds."""
        stretched = th.addcmul(self._action_center, self._action_reach, actions.clamp(-1.0, 1.0))
        return stretched.view(-1, *self.action_space.shape)  # type: ignore[misc]

    def _told(self, step: TensorStep) -> dict[str, Any]:
        told: dict[str, Any] = {"rewards": step.reward, "terminated": step.terminated, "truncated": step.truncated}
        if self.timeout_bootstrap == "final_obs":
            told["final_valid"] = step.final_valid
            if step.final_observation is not None:
                told["final_observations"] = step.final_observation
        return told

    def _count_episodes(self, env: TensorVecEnv) -> None:
        """What ended in the rollout, for the logs; ordinary environments tell it by their infos."""
        assert self.ep_info_buffer is not None
        if isinstance(env, VecEnvAdapter):
            return
        summary = env.episodes.pop()
        episode = {"r": summary.mean_return, "l": summary.mean_length, "t": 0.0}
        self.ep_info_buffer.extend([episode] * min(summary.n_episodes, self._stats_window_size))

    @th.no_grad()
    def _value_rollout(self, last_observation: Any) -> None:
        """Values, advantages and returns of all steps, and what the method remembers of the policy that acted."""
        buffer: Any = self.rollout_buffer
        shape = buffer.n_steps, buffer.n_envs
        value: Any = self.policy.value
        buffer["values"] = values = th.cat([value(rows) for rows in buffer.chunks("observations", self.rows_at_once)]).view(
            shape
        )
        next_values = th.cat((values[1:], value(last_observation).unsqueeze(0)))
        truncated, terminated = buffer["truncated"], buffer["terminated"]
        final_values, final_valid = None, None
        if "final_observations" in buffer:
            final_valid = buffer["final_valid"]
            final_values = self._final_values(truncated & final_valid)
        following = following_values(
            self.timeout_bootstrap, values, next_values, terminated, truncated, final_values, final_valid
        )
        advantages = generalized_advantages(
            buffer["rewards"], values, following, terminated | truncated, self.gamma, self.gae_lambda
        )
        buffer["returns"] = advantages + values
        buffer["advantages"] = standardized(advantages) if self.normalize_advantage is True else advantages
        starts = range(0, buffer.size, self.rows_at_once)
        remembered = [self.remember(buffer.rows(slice(start, start + self.rows_at_once))) for start in starts]
        for name in remembered[0]:
            whole = th.cat([part[name] for part in remembered])
            buffer.fields[name] = whole.view(*shape, *whole.shape[1:])

    def _final_values(self, wanted: th.Tensor) -> th.Tensor:
        """Values of the last observations of episodes that were cut off, 0 elsewhere. Waits for the device, once a rollout."""
        rows = wanted.flatten().nonzero().squeeze(1)
        values = th.zeros(wanted.numel(), device=self.device)
        observations = self.rollout_buffer.flat("final_observations")
        value: Any = self.policy.value
        for part in rows.split(self.rows_at_once):
            values[part] = value(each(lambda tensor, part=part: tensor[part], observations))  # type: ignore[misc]
        return values.view_as(wanted)

    def returned(self) -> dict[str, th.Tensor]:
        """What the environments returned in the last rollout, numbers only."""
        observations = self.rollout_buffer["observations"]
        parts = observations if isinstance(observations, dict) else {"": observations}
        named = {f"observations{f'[{key!r}]' if key else ''}": part for key, part in parts.items()}
        return {
            name: part
            for name, part in {**named, "rewards": self.rollout_buffer["rewards"]}.items()
            if part.is_floating_point()
        }
