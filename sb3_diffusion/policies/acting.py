"""How policies act: draw actions, choose among them, explore, and predict for users of Stable-Baselines3."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from typing_extensions import Self, override

from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer
from sb3_diffusion.policies.actors.exploration import ExplorationNoise
from sb3_diffusion.policies.actors.selection import Selection, best_candidates
from sb3_diffusion.policies.features import is_vector_space
from sb3_diffusion.policies.parts import in_float32, train_unless_frozen
from sb3_diffusion.policies.values.critic import ObservationCritic, reduce_critics

NOISE_BANK_SEED = 0
MAX_CANDIDATES = 100_000
"""Most candidates of a deterministic action: their noise is made at construction."""
EVALUATION_NOISE = ("fixed", "fresh")
"""Where deterministic actions have their noise from."""


class ActingPolicy(BasePolicy):
    """
    A policy whose actor draws actions, among which critics may choose. What it is made of, a subclass says.

    :param observation_space: Observation space
    :param action_space: Action space, a Box with finite bounds
    :param features_extractor_class: Features extractor
    :param features_extractor_kwargs: Its keyword arguments
    :param n_action_candidates: Actions per observation of which the critics choose the best when ``deterministic=True``
    :param n_behavior_candidates: The same for ``deterministic=False``
    :param choose_with_target: Whether the target critics choose it when ``deterministic=True``
    :param selection: How one of ``n_behavior_candidates`` actions is chosen, see
        :class:`~sb3_diffusion.policies.actors.selection.Selection`
    :param evaluation_noise: See :attr:`evaluation_noise`
    :param kwargs: Further arguments of Stable-Baselines3's ``BasePolicy``
    """

    acting: str
    """Name of the actor that acts."""
    evaluating: str
    """Name of the actor of deterministic actions."""
    trained: dict[str, nn.Module]
    """The networks that are trained, by name."""
    critic: ObservationCritic
    critic_target: ObservationCritic
    exploration: ExplorationNoise
    bank_x: th.Tensor
    bank_steps: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor_class: type[BaseFeaturesExtractor],
        features_extractor_kwargs: dict[str, Any],
        *,
        n_action_candidates: int,
        n_behavior_candidates: int,
        choose_with_target: bool,
        selection: str | dict[str, Any],
        evaluation_noise: str,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, features_extractor_class, features_extractor_kwargs, squash_output=True, **kwargs
        )
        self._n_action_candidates = integer("n_action_candidates", n_action_candidates, 1, MAX_CANDIDATES)
        self.n_behavior_candidates = integer("n_behavior_candidates", n_behavior_candidates, low=1)
        self.choose_with_target = choose_with_target
        self.selection = Selection.of(selection)
        self.evaluation_noise = evaluation_noise
        self.randomness = Randomness()
        #: Stands in for :meth:`explore`, a CUDA graph of it
        self.explore_graph: Callable[[PyTorchObs], th.Tensor] | None = None
        self._holds_frozen = False
        self._observes_vectors = is_vector_space(observation_space)
        self._extracts_purely = self.features_extractor_class in (FlattenExtractor, NatureCNN, CombinedExtractor)

    @property
    def evaluation_noise(self) -> str:
        """
        Where actions with ``deterministic=True`` have their noise from. ``"fixed"``: the chain is silent, and further
        candidates always have the same noise, so that the action is a function of weights and observation. ``"fresh"``:
        everything is drawn anew at each call. May be changed at any time; :meth:`save` keeps it.
        """
        return self._evaluation_noise

    @evaluation_noise.setter
    def evaluation_noise(self, noise: str) -> None:
        self._evaluation_noise = choice("evaluation_noise", noise, EVALUATION_NOISE)

    @property
    def n_action_candidates(self) -> int:
        """
        Actions of which the critics choose when ``deterministic=True``. May be changed at any time, to see what the choice is
        worth; a saved agent has the number that it was made with.
        """
        return self._n_action_candidates

    @n_action_candidates.setter
    def n_action_candidates(self, n: int) -> None:
        n = integer("n_action_candidates", n, 1, MAX_CANDIDATES)
        if n > 1 and getattr(self, "critic", None) is None:
            raise ValueError(f"n_action_candidates={n} must be 1: the method has no critics that could choose among several.")
        self._n_action_candidates = n
        self._build_noise_bank(len(self.bank_steps))

    @contextmanager
    def evaluated_with(self, noise: str) -> Iterator[Self]:
        """
        Within it, deterministic actions have another noise.

        :param noise: See :attr:`evaluation_noise`
        """
        before, self.evaluation_noise = self.evaluation_noise, noise
        try:
            yield self
        finally:
            self.evaluation_noise = before

    @property
    def draws_when_evaluated(self) -> bool:
        """Whether :attr:`evaluation_noise` makes a difference: deterministic actions of this policy have some noise."""
        return True

    def _build_noise_bank(self, n_steps: int) -> None:
        """Noise of ``predict(deterministic=True)``: none for the first candidate, random but fixed for the others."""
        n, action_dim = self.n_action_candidates, get_action_dim(self.action_space)
        generator = th.Generator().manual_seed(NOISE_BANK_SEED)
        bank = Randomness(generator).normal((n_steps + 1, 1, n, action_dim), "bank", like=th.empty(()))
        bank[:, :, 0] = 0.0
        if n == 1:  # without a candidate axis
            bank = bank.squeeze(2)
        bank = bank.to(self.device if hasattr(self, "bank_x") else "cpu")
        self.register_buffer("bank_x", bank[0, 0], persistent=False)
        self.register_buffer("bank_steps", bank[1:], persistent=False)

    @property
    def device(self) -> th.device:
        """Device of the policy."""
        return self.bank_x.device  # without walking through all modules for the first parameter

    @override
    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(obs, deterministic=deterministic)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions in the units of the environment.

        :param observation: One observation or a batch of them
        :param state: Returned as it is (the policy has no memory)
        :param episode_start: Ignored
        :param deterministic: Whether to return the deterministic action, see :attr:`evaluation_noise`
        :return: Actions, and ``state``
        """
        # tensors that no gradient will ever need are cheaper to make, a tenth of the time of a one-row chain;
        # a features extractor of the user's own may keep some of its tensors for the training
        with th.inference_mode(self._extracts_purely):
            return super().predict(observation, state, episode_start, deterministic)

    def obs_to_tensor(self, observation: np.ndarray | dict[str, np.ndarray]) -> tuple[PyTorchObs, bool]:
        """
        Convert observations for the networks.

        :param observation: One observation or a batch of them
        :return: A batch of tensors, and whether ``observation`` was a batch
        """
        if self._observes_vectors and isinstance(observation, np.ndarray):
            shape = self.observation_space.shape
            single = observation.shape == shape
            if single or observation.shape[1:] == shape:
                copied = np.array(observation[None] if single else observation)
                return th.from_numpy(copied).to(self.device), not single
        return super().obs_to_tensor(observation)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if deterministic:
            draws = self.fixed_draws() if self._evaluation_noise == "fixed" else self.fresh_draws()
            critic = self.choosing_critic(self.choose_with_target)
            rule = self.selection if self.selection.rule == "topk_mean" else None
            choices: dict[str, Any] = {"critic": critic, "evaluating": True, "rule": rule}
            return in_float32(self.select_actions(observation, self.n_action_candidates, draws, **choices))
        return in_float32((self.explore_graph or self.explore)(observation))

    def fixed_draws(self) -> RecordedDraws:
        """What a deterministic action gets in the place of draws."""
        return RecordedDraws({"act.x_T": self.bank_x, "act.step_noise": self.bank_steps})

    def fresh_draws(self) -> Randomness:
        """What a deterministic action draws from where its noise is fresh."""
        return self.randomness

    def choosing_critic(self, target: bool) -> ObservationCritic:
        """
        :param target: Whether the target critics are to choose, where the critics do
        :return: What chooses among candidates
        """
        if self.selection.critics != "critic":
            return self.trained[self.selection.critics]  # type: ignore[return-value]
        return self.critic_target if target else self.critic

    def explore(self, observations: PyTorchObs) -> th.Tensor:
        """
        The method's behaviour while training.

        :param observations: Batch of observations
        :return: Actions in [-1, 1], ``(batch, action_dim)``
        """
        rule = self.selection
        n_candidates = 1 if rule.rule == "none" else self.n_behavior_candidates
        critic = self.choosing_critic(rule.target)
        actions = self.select_actions(observations, n_candidates, self.randomness, critic=critic, rule=rule)
        return self.exploration(actions, self.randomness, "act.explore")

    def select_actions(
        self,
        observations: PyTorchObs,
        n_candidates: int,
        randomness: Randomness,
        label: str = "act",
        critic: ObservationCritic | None = None,
        evaluating: bool = False,
        rule: Selection | None = None,
    ) -> th.Tensor:
        """
        Draw ``n_candidates`` actions per observation and keep one that the critics choose.

        :param observations: Batch of observations
        :param n_candidates: Actions per observation
        :param randomness: Source of the draws
        :param label: Prefix of the names of the draws
        :param critic: The critics that choose, ``None`` for the trained ones
        :param evaluating: Whether it is a deterministic action, for which an actor may take other steps
        :param rule: How they choose, ``None`` for the largest value
        :return: Actions in [-1, 1], ``(batch, action_dim)``
        """
        if n_candidates == 1:
            return self.draw_actions(observations, randomness, label, evaluating=evaluating)
        candidates = self.draw_actions(observations, randomness, label, n_candidates, evaluating)
        critic = self.critic if critic is None else critic
        values = reduce_critics(critic.q(candidates, critic.encode(observations)), self.selection.reduction)
        if rule is not None and rule.rule == "expectile":
            values = values - getattr(self, rule.baseline)(observations).unsqueeze(1)
        return best_candidates(candidates, values) if rule is None else rule.choose(candidates, values, randomness, label)

    def draw_actions(
        self,
        observations: PyTorchObs,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        evaluating: bool = False,
    ) -> th.Tensor:
        """
        What the acting actor draws.

        :param observations: Batch of observations
        :param randomness: Source of the draws
        :param label: Prefix of the names of the draws
        :param n_candidates: Actions per observation, ``None`` for one without a candidate axis
        :param evaluating: Whether it is for a deterministic action, for which an actor may take other steps
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """
        actor: Any = self._modules[self.evaluating if evaluating else self.acting]  # skips nn.Module's slow attribute lookup
        return actor.act(observations, randomness, label, n_candidates, evaluating)  # type: ignore[no-any-return]

    def set_training_mode(self, mode: bool) -> None:
        """
        Put actor and critics in training or evaluation mode; the targets always stay in evaluation mode, and so does what
        the user froze.

        :param mode: ``True`` for training
        """
        actor: Any = self._modules["actor"]
        critic: Any = self._modules.get("critic", actor)
        networks = self.trained.values()
        if mode and not all(p.requires_grad for network in networks for p in network.parameters()):
            for network in networks:
                train_unless_frozen(network)
            self._holds_frozen = True
        elif mode == self.training == actor.training == critic.training and not self._holds_frozen:
            return  # asked for at every action
        else:
            for network in networks:
                _switch(network, mode)
            self._holds_frozen = False
        self.training = mode


def _switch(module: nn.Module, mode: bool) -> None:
    """``module.train(mode)`` in a tenth of the time, which training spends twice per environment step."""
    if type(module).train is not nn.Module.train or type(module).__setattr__ is not nn.Module.__setattr__:
        module.train(mode)  # somebody's own rule
        return
    module.__dict__["training"] = mode
    for child in module._modules.values():
        if child is not None:
            _switch(child, mode)
