"""The acting half of a diffusion policy: observation -> features -> denoiser -> sampling chain -> action."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.generative.controlled import ControlledDiffusion
from sb3_diffusion.generative.coupled_flow import CoupledProcess
from sb3_diffusion.generative.flow import FlowMatching
from sb3_diffusion.generative.process import GenerativeProcess
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.names import choice
from sb3_diffusion.networks.denoiser import Denoiser, FreshDenoiser
from sb3_diffusion.numeric import integer
from sb3_diffusion.policies.actors.base import Actor
from sb3_diffusion.policies.actors.processes import chain_options, make_process
from sb3_diffusion.policies.parts import frozen_copy

TIME_INPUTS = ("t", "logsnr")


class NoisyActions(NamedTuple):
    """
    Actions on their way to pure noise, ``x_t = alpha * actions + sigma * eps``.

    Actions are ``(batch, action_dim)``, or ``(batch, n, action_dim)`` for several per state; dots stand for these axes.

    :param x_t: Noisy actions ``(..., action_dim)``
    :param t: Diffusion times ``(..., 1)``, ``(..., 2)`` for a process of intervals
    :param alpha: Signal coefficients ``(..., 1)``
    :param sigma: Noise coefficients ``(..., 1)``
    :param eps: The noise ``(..., action_dim)``
    """

    x_t: th.Tensor
    t: th.Tensor
    alpha: th.Tensor
    sigma: th.Tensor
    eps: th.Tensor


class TwoDenoisers:
    """
    A network that takes over from another one in the middle of a chain.

    :param first: What begins
    :param last: What goes on
    :param n_first: Evaluations of the first
    """

    def __init__(self, first: FreshDenoiser, last: FreshDenoiser, n_first: int):
        self.first, self.last, self.n_first = first, last, n_first
        self.features = last.features

    def __call__(self, x: th.Tensor, k: int) -> th.Tensor:
        """The prediction at ``x``, at the evaluation number ``k``."""
        return self.first(x, k) if k < self.n_first else self.last(x, k)


class DiffusionActor(Actor):
    """
    Policy whose actions are the end of a reverse diffusion (or flow) chain, conditioned on the observation.

    ``predict``, ``save`` and ``load`` are Stable-Baselines3's. The actor alone asks no critics and adds no exploration noise:
    where the policy chooses among several chains, ``policy.predict`` is another action than ``actor.predict``.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param process: Forward process that the denoiser is trained on, or the learned diffusion that it controls: one of
        :data:`~sb3_diffusion.policies.actors.processes.PROCESSES`
    :param process_kwargs: Further arguments of the process
    :param noise_schedule: Noise schedule of a diffusion, ``None`` for its default
    :param diffusion_steps: Steps of the chain used inside the update (targets, backpropagation through time)
    :param sampling_steps: Steps of the chain used when acting, ``None`` for the same
    :param evaluation_steps: Steps of the chain used for deterministic actions, ``None`` for those of acting
    :param solver: One of the process' solvers, ``None`` for its default
    :param variance: Variance of the noise in the steps
    :param clip_target: What the steps of a diffusion clip
    :param sampler_kwargs: Further arguments of the process' ``sampler``
    :param time_input: What the denoiser is told about the time: ``"t"`` itself, or ``"logsnr"``, the logarithm of the
        signal-to-noise ratio
    :param finetune_steps: Last steps of the chain of acting that this actor takes itself. Those before are taken by a frozen
        actor, ``clone``, which is a copy of this one until :meth:`copy_to_clone`; ``None`` for all steps
    :param normalize_images: Whether to divide images by 255
    :param denoiser_kwargs: Arguments of the :class:`~sb3_diffusion.networks.denoiser.Denoiser` behind the sizes
    """

    features_extractor: BaseFeaturesExtractor
    process: Any  # GenerativeProcess, ControlledDiffusion or CoupledProcess; its `prediction` says for which losses it is

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        process: str = "continuous",
        process_kwargs: dict[str, Any] | None = None,
        noise_schedule: str | None = None,
        diffusion_steps: int = 20,
        sampling_steps: int | None = None,
        evaluation_steps: int | None = None,
        solver: str | None = None,
        variance: str = "beta",
        clip_target: str = "x0",
        sampler_kwargs: dict[str, Any] | None = None,
        time_input: str = "t",
        finetune_steps: int | None = None,
        normalize_images: bool = True,
        **denoiser_kwargs: Any,
    ):
        action_dim = get_action_dim(action_space)
        made = make_process(process, noise_schedule, diffusion_steps, action_dim, process_kwargs)
        _check_time_input(time_input, process, made)
        super().__init__(observation_space, action_space, features_extractor, normalize_images, squash_output=True)
        self._arguments = {
            "process": process,
            "process_kwargs": process_kwargs,
            "noise_schedule": noise_schedule,
            "diffusion_steps": diffusion_steps,
            "sampling_steps": sampling_steps,
            "evaluation_steps": evaluation_steps,
            "solver": solver,
            "variance": variance,
            "clip_target": clip_target,
            "sampler_kwargs": sampler_kwargs,
            "time_input": time_input,
            "finetune_steps": finetune_steps,
            **denoiser_kwargs,
        }
        self.action_dim = action_dim
        self.denoiser = Denoiser(features_extractor.features_dim, action_dim, n_times=made.n_times, **denoiser_kwargs)
        self.process = made
        acting_steps = sampling_steps or diffusion_steps
        steps = (diffusion_steps, acting_steps, evaluation_steps or acting_steps)
        self._chain_options = {**chain_options(process, solver, variance, clip_target), **(sampler_kwargs or {})}
        # equal chains are one object
        chains = {n: self.make_chain(n) for n in steps}
        self.update_chain, self.acting_chain, self.evaluation_chain = (chains[n] for n in steps)
        self.time_input = choice("time_input", time_input, TIME_INPUTS)
        self.clone: DiffusionActor | None = None
        if finetune_steps is not None:
            self.clone = self._make_clone(finetune_steps)

    def _make_clone(self, finetune_steps: int) -> "DiffusionActor":
        steps = self.acting_chain.steps
        integer("finetune_steps", finetune_steps, 1, steps, remedy=f"a chain has {steps} steps")
        if self.evaluation_chain is not self.acting_chain:
            raise ValueError(
                f"evaluation_steps={self.evaluation_chain.steps} would act without the frozen steps of finetune_steps="
                f"{finetune_steps}; leave it out, so that evaluations act as the training does."
            )
        self.n_frozen_steps = steps - finetune_steps
        return frozen_copy(self)

    @th.no_grad()
    def copy_to_clone(self) -> None:
        """Let the frozen actor be what this one is now."""
        if self.clone is not None:
            own = self.state_dict()
            self.clone.load_state_dict({name: own[name] for name in self.clone.state_dict()})

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._arguments}

    def make_chain(self, steps: int, **changes: Any) -> Any:
        """
        :param steps: Number of steps
        :param changes: Arguments of the process' ``sampler`` that differ from those of this actor
        :return: A reverse chain
        """
        return self.process.sampler(steps, **{**self._chain_options, **changes})

    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """
        Everything of the denoiser that depends on the observation alone; computed once, used at all steps and particles.

        :param observations: Batch of observations
        :return: Context ``(batch, hidden)``
        """
        return self.denoiser.encode_state(self.extract_features(observations, self.features_extractor))

    def encode_time(self, t: th.Tensor) -> th.Tensor:
        """
        Everything of the denoiser that depends on the diffusion time alone.

        :param t: Diffusion times ``(..., 1)``
        :return: Encoded times ``(..., hidden)``
        """
        return self.denoiser.encode_time(self._network_time(t))

    def _network_time(self, t: th.Tensor) -> th.Tensor:
        return t if self.time_input == "t" else self.process.log_snr(t)

    def bind(self, context: th.Tensor, times: th.Tensor) -> Callable[[th.Tensor, int], th.Tensor]:
        """
        The network for fixed observations and a sequence of times, as samplers and likelihoods call it.

        :param context: Result of :meth:`encode`
        :param times: Diffusion times ``(n_evaluations,)``, ``(n_evaluations, 2)`` for a process of intervals
        :return: Function of noisy actions and the number of the evaluation
        """
        return self.denoiser.bind(context, self.encode_time(times.view(len(times), -1)))

    def add_noise(self, actions: th.Tensor, randomness: Randomness, label: str) -> NoisyActions:
        """
        Run the forward process to a random time per action.

        :param actions: Clean actions ``(batch, action_dim)`` or ``(batch, n, action_dim)``
        :param randomness: Source of times and noise
        :param label: Prefix of the names of the draws
        :return: The noisy actions and what led to them
        """
        t = self.process.sample_time((*actions.shape[:-1], 1), randomness, f"{label}.t", like=actions)
        alpha, sigma = self.process.coefficients(t)
        eps = randomness.normal(actions.shape, f"{label}.eps", like=actions)
        return NoisyActions(alpha * actions + sigma * eps, t, alpha, sigma, eps)

    def denoise(self, x_t: th.Tensor, t: th.Tensor, context: th.Tensor) -> th.Tensor:
        """
        Network output at arbitrary times, as needed by the regression losses.

        :param x_t: Noisy actions ``(batch, action_dim)`` or ``(batch, n, action_dim)``
        :param t: Their diffusion times ``(batch, 1)`` or ``(batch, n, 1)``
        :param context: Result of :meth:`encode`
        :return: Predicted noise (velocity for a flow), of the shape of ``x_t``
        """
        return self.denoiser.at_times(x_t, context, self._network_time(t))

    def denoising_error(self, actions: th.Tensor, context: th.Tensor, randomness: Randomness, label: str) -> th.Tensor:
        """
        Squared errors of the denoiser at one random time per action: their mean is what the imitation of actions minimises.

        :param actions: Clean actions ``(batch, action_dim)``
        :param context: Result of :meth:`encode`
        :param randomness: Source of times and noise
        :param label: Prefix of the names of the draws
        :return: Errors of the shape of ``actions``
        """
        noisy = self.add_noise(actions, randomness, label)
        target = self.process.regression_target(actions, noisy.eps)
        return (self.denoise(noisy.x_t, noisy.t, context) - target).square()

    def act(
        self,
        observations: PyTorchObs,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        evaluating: bool = False,
        clip_output: bool = True,
    ) -> th.Tensor:
        """
        Actions for observations that nothing else needs encoded, by the chain of ``sampling_steps``.

        :param observations: Batch of observations
        :param randomness: Source of the starting point and of the step noise
        :param label: Prefix of the names of the draws
        :param n_candidates: Independent samples per row, ``None`` for one without a candidate axis
        :param evaluating: Use the chain of deterministic actions (``evaluation_steps``)
        :param clip_output: Clamp the result to [-1, 1]
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """
        chain = self.evaluation_chain if evaluating else self.acting_chain
        denoise = self.bind_observations(observations, chain.times)
        # not len(): that would be a constant of an exported policy
        shape = self._sample_shape(denoise.features.shape[0], n_candidates)
        return chain.sample(denoise, shape, randomness, label, clip_output=clip_output)

    def bind_observations(self, observations: PyTorchObs, times: th.Tensor) -> "FreshDenoiser | TwoDenoisers":
        """
        The network for observations that nothing else needs encoded, as the chain of acting calls it.

        :param observations: Batch of observations
        :param times: Diffusion times of the chain, ``(n_evaluations,)`` or ``(n_evaluations, 2)``
        :return: Function of noisy actions and the number of the evaluation
        """
        features = self.extract_features(observations, self.features_extractor)
        own = self.denoiser.bind_features(features, self._network_time(times.view(times.shape[0], -1)))
        if self.clone is None:
            return own
        return TwoDenoisers(self.clone.bind_observations(observations, times), own, self.n_frozen_steps)  # type: ignore[arg-type]

    def sample(
        self,
        context: th.Tensor,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        clip_output: bool = True,
    ) -> th.Tensor:
        """
        Run the update's chain (``diffusion_steps``), differentiable unless called under ``no_grad``.

        :param context: Result of :meth:`encode`, ``(batch, hidden)``
        :param randomness: Source of the starting point and of the step noise
        :param label: Prefix of the names of the draws
        :param n_candidates: Independent samples per row, ``None`` for one without a candidate axis
        :param clip_output: Clamp the result to [-1, 1]; the clamp has no gradient outside the box
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """
        chain = self.update_chain
        denoise = self.bind(context, chain.times)
        shape = self._sample_shape(context.shape[0], n_candidates)
        return chain.sample(denoise, shape, randomness, label, clip_output=clip_output)


def _check_time_input(time_input: str, name: str, process: GenerativeProcess | ControlledDiffusion | CoupledProcess) -> None:
    if time_input == "logsnr" and not isinstance(process, GenerativeProcess):
        raise ValueError(f"time_input='logsnr' needs a signal-to-noise ratio, which process={name!r} has not; use 't'.")
    if time_input == "logsnr" and isinstance(process, FlowMatching):
        raise ValueError("time_input='logsnr' is infinite at the pure noise where a flow begins; use 't'.")
