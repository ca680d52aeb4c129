"""The processes and solvers that a policy knows by name."""

from typing import Any

from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.controlled import ControlledDiffusion
from sb3_diffusion.generative.coupled_flow import CoupledProcess
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.flow import FLOW_SOLVERS, MEAN_FLOW_SOLVERS, FlowMatching, MeanFlow
from sb3_diffusion.generative.process import GenerativeProcess
from sb3_diffusion.generative.solvers.rules import CLIP_TARGETS, SOLVERS, VARIANCES
from sb3_diffusion.names import choice

PROCESSES: dict[str, tuple[str, ...]] = {
    "continuous": tuple(SOLVERS),
    "discrete": tuple(SOLVERS),
    "flow": tuple(FLOW_SOLVERS),
    "meanflow": MEAN_FLOW_SOLVERS,
    "controlled": (),
    "coupled": (),
}
"""Process -> its solvers, the default first."""
CLIPPED = (*CLIP_TARGETS, "none")
"""What the steps of a diffusion may clip."""
FLOWS: dict[str, type[FlowMatching | CoupledProcess]] = {"flow": FlowMatching, "meanflow": MeanFlow, "coupled": CoupledProcess}


def make_process(
    process: str, noise_schedule: str | None, diffusion_steps: int, action_dim: int, process_kwargs: dict[str, Any] | None
) -> GenerativeProcess | ControlledDiffusion | CoupledProcess:
    """
    :param process: One of :data:`PROCESSES`
    :param noise_schedule: Noise schedule of a diffusion, ``None`` for its default
    :param diffusion_steps: Length of the table of the discrete process, unless ``process_kwargs`` has another one
    :param action_dim: Size of the flattened action
    :param process_kwargs: Further arguments of the process
    :return: The process
    :raises ValueError: If there is no such process or schedule
    """
    choice("process", process, PROCESSES)
    options = process_kwargs or {}
    if process in FLOWS:
        if noise_schedule is not None:
            raise ValueError(
                f"noise_schedule={noise_schedule!r} has no meaning for process={process!r}, a flow: "
                "leave it out (cosine, linear and vp belong to the diffusion processes)."
            )
        return FLOWS[process](**options)
    schedule = "cosine" if noise_schedule is None else noise_schedule
    if process == "continuous":
        return ContinuousDiffusion(schedule, **options)
    if process == "controlled":
        return ControlledDiffusion(action_dim, schedule, **options)
    # a longer table than the chain of the update: its own number of steps is among the options
    return DiscreteDiffusion(schedule, **{"diffusion_steps": diffusion_steps, **options})


def chain_options(process: str, solver: str | None, variance: str, clip_target: str = "x0") -> dict[str, Any]:
    """
    :param process: One of :data:`PROCESSES`
    :param solver: One of its solvers, ``None`` for its default
    :param variance: Variance of the noise in the steps
    :param clip_target: What the steps of a diffusion clip, one of :data:`CLIPPED`
    :return: Arguments of the process' ``sampler``
    :raises ValueError: If the process has no such solver
    """
    solvers = PROCESSES[process]
    if solver is not None and solver not in solvers:
        known = "; ".join(f"{name}: {', '.join(names) or 'none'}" for name, names in PROCESSES.items())
        raise ValueError(f"Unknown solver={solver!r} for process={process!r}; known are, by process, {known}.")
    choice("variance", variance, VARIANCES)
    choice("clip_target", clip_target, CLIPPED)
    if not solvers:
        return {}
    options = {"solver": solvers[0] if solver is None else solver}
    if process in FLOWS:
        return options
    clip = {"clip": False} if clip_target == "none" else {"clip_target": clip_target}
    return {**options, "variance": variance, **clip}
