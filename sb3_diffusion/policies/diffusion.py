"""``DiffusionPolicy``: a diffusion actor, critics, target critics and their optimizers in one Stable-Baselines3 policy."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from typing_extensions import Unpack

from sb3_diffusion.numeric import MAX_STEPS, integer, optional, real, widths
from sb3_diffusion.policies.actor_critic import ActorCritic, ActorCriticArguments, all_arguments
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.parts import per_network, widths_of_both


class DiffusionPolicy(ActorCritic, hands_on=True):
    """
    Policy of the off-policy algorithms: a diffusion actor with an ensemble of critics.

    Works in the normalised action box [-1, 1]; ``predict`` returns actions in the units of the environment. With
    ``deterministic=True`` the action is a pure function of weights and observation: the chains start from a fixed bank of
    noise (unless ``evaluation_noise="fresh"``), and where the method evaluates so, the best of ``n_action_candidates`` chains
    under the critics is chosen. ``deterministic=False`` is the method's behaviour while training.

    :param observation_space: Observation space (Box, image, Dict, ...)
    :param action_space: Action space, a Box of any shape with finite bounds
    :param lr_schedule: Learning rate schedule; the algorithm sets the rates of actor and critics before every update
    :param net_arch: Hidden layers: a list for both networks or ``dict(pi=[...], qf=[...])``; without any, a network is linear.
        Default: actor [256, 256, 256], critics [256, 256]
    :param activation_fn: Activation class, name (such as ``"mish"``) or function without arguments that makes one, or
        ``dict(pi=..., qf=...)``.
        Default: Mish for the actor, ReLU for the critics
    :param backbone: ``"mlp"``, ``"residual"``, ``"simba"`` or ``"bronet"`` (``"unet"`` for the actor alone), or
        ``dict(pi=..., qf=...)``
    :param layer_norm: Whether the backbones normalise their hidden layers, or ``dict(pi=..., qf=...)``
    :param process: ``"continuous"`` (variance-preserving diffusion in continuous time), ``"discrete"`` (DDPM), ``"flow"``
        (flow matching on straight paths), ``"meanflow"`` (its average velocities), ``"controlled"`` (Langevin diffusion with
        learned control and step sizes) or ``"coupled"`` (an invertible flow of doubled actions); the algorithm says which it
        can train
    :param process_kwargs: Further arguments of the process
    :param noise_schedule: Noise schedule of a diffusion: ``"cosine"`` (default), ``"linear"``, or, discrete only, ``"vp"`` or
        ``"scaled_linear"``
    :param diffusion_steps: Steps of the chain inside the update; length of the table of the discrete process, unless
        ``process_kwargs={"diffusion_steps": ...}`` says that it is longer
    :param sampling_steps: Steps of the chain when acting; ``None`` for ``diffusion_steps``
    :param evaluation_steps: Steps of the chain when acting with ``deterministic=True``; ``None`` for ``sampling_steps``
    :param solver: ``"ddpm"`` (default), ``"ddim"``, ``"dpm2"`` or ``"dpm++2m"`` for a diffusion; ``"euler"`` (default),
        ``"midpoint"``, ``"heun"`` or ``"rk4"`` for a flow; a controlled diffusion has its own steps
    :param variance: Variance of the ``"ddpm"`` steps: ``"beta"`` or ``"posterior"``
    :param clip_target: What the steps of a diffusion clip to the box: ``"x0"`` the estimate of the clean action, ``"state"``
        the noisy action itself, which distorts it, ``"none"`` nothing but the result
    :param sampler_kwargs: Further arguments of the chains, such as ``grid`` and ``power`` of a diffusion in continuous time,
        see :class:`~sb3_diffusion.generative.solvers.sampler.Sampler`
    :param time_dim: Width of the time embedding
    :param time_embedding: ``"fourier"``, ``"positional"``, ``"sinusoidal"``, ``"random"``, ``"octave"`` or ``"raw"``
    :param time_arch: List of the layers behind the time embedding; ``None`` for two of its width, none for ``"random"``,
        ``"octave"`` and ``"raw"``
    :param time_activation: Activation behind the layers of ``time_arch``; ``None`` for the actor's
    :param time_input: What is embedded: ``"t"`` for the diffusion time, ``"logsnr"`` for the log signal-to-noise ratio
        (diffusions only)
    :param finetune_steps: Last steps of the chain that the actor takes, behind those of a frozen copy; ``None`` for all
    :param output_gain: Gain of the initialisation of the denoiser's last layer; ``None`` for the backbone's own
    :param output_scale: Factor of the denoiser's prediction
    :param dropout: Share of the denoiser's hidden units that is dropped while it is trained
    :param state_arch: List of the layers that embed the features before they enter the denoiser
    :param kwargs: See :class:`~sb3_diffusion.policies.actor_critic.ActorCritic`
    """

    general_name: ClassVar[str] = "DiffusionPolicy"
    actor_class: ClassVar[type[DiffusionActor]] = DiffusionActor
    actor: DiffusionActor
    actor_target: DiffusionActor | None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: Callable[[], nn.Module] | str | dict[str, Any] | None = None,
        *,
        backbone: str | dict[str, str] = "mlp",
        layer_norm: bool | dict[str, bool] = False,
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
        time_dim: int = 64,
        time_embedding: str = "fourier",
        time_arch: Sequence[int] | None = None,
        time_activation: Callable[[], nn.Module] | str | None = None,
        time_input: str = "t",
        finetune_steps: int | None = None,
        output_gain: float | None = None,
        output_scale: float = 1.0,
        dropout: float = 0.0,
        state_arch: Sequence[int] = (128, 128),
        **kwargs: Unpack[ActorCriticArguments],
    ):
        self.constructor_arguments = all_arguments(DiffusionPolicy, locals())
        diffusion_steps = integer("diffusion_steps", diffusion_steps, 1, MAX_STEPS)
        sampling_steps = optional(integer, "sampling_steps", sampling_steps, 1, MAX_STEPS)
        evaluation_steps = optional(integer, "evaluation_steps", evaluation_steps, 1, MAX_STEPS)
        actor_arguments: dict[str, Any] = {
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
            "net_arch": widths_of_both(net_arch, [256, 256, 256])["pi"],
            "activation": per_network("activation_fn", activation_fn, "pi", "mish"),
            "backbone": per_network("backbone", backbone, "pi", "mlp"),
            "layer_norm": per_network("layer_norm", layer_norm, "pi", False),
            "time_dim": time_dim,
            "time_embedding": time_embedding,
            "time_arch": None if time_arch is None else widths("time_arch", time_arch),
            "time_activation": time_activation,
            "output_gain": optional(real, "output_gain", output_gain, low=0),
            "output_scale": output_scale,
            "dropout": real("dropout", dropout, 0, below=1, remedy="0 drops nothing"),
            "state_arch": widths("state_arch", state_arch),
        }
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            actor_arguments,
            evaluation_steps or sampling_steps or diffusion_steps,
            net_arch,
            activation_fn,
            backbone,
            layer_norm,
            **kwargs,
        )
