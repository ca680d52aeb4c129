"""
The reference's 200 updates, and ours beside them: the same first weights, batches and draws, and then each on its own.

What is recorded of the reference lies in ``golden/08_lockstep_<run>``; its README says how. The updates here are those of a
training, :meth:`~sb3_diffusion.core.algorithm.DiffusionAlgorithm.update` and nothing else.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor
from typing_extensions import override

from sb3_diffusion import DACER, QSM, QVPO, iDEM
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.policies.actors.exploration import mixture_entropy
from sb3_diffusion.reparameterization import dacer
from tests.frozen_draws import UPDATES, FrozenDraws
from tests.golden_algorithms import GAMMA, loaded_model, weights_of
from tests.golden_tools import Case, load, sub
from tests.golden_weights import load_denoiser

NETWORKS = ("actor", "actor_target", "critic", "critic_target")
SCALARS: dict[str, Callable[[Any], th.Tensor]] = {
    "running_q_std": lambda model: model.critic.ensemble.running_std,
    "log_alpha": lambda model: model.noise_factor.log_value,
}


class Run(NamedTuple):
    """A method, and the arguments with which it does what the reference does (see its page in the documentation)."""

    algorithm: type[OffPolicyDiffusion]
    arguments: dict[str, Any]


RUNS = {
    "dacer": Run(DACER, {"half_squared_error": True, "alpha_update_interval": 20, "n_entropy_samples": 20}),
    "qsm": Run(QSM, {"temperature": 0.1}),
    "idem": Run(iDEM, {"temperature": 0.3, "n_particles": 8, "clip_target": False}),
    "qvpo": Run(QVPO, {"n_particles": 5, "n_target_candidates": 2, "ent_coef": 0.05, "weight_aggregation": "mean"}),
}


class Trajectory(NamedTuple):
    """
    What became of a run.

    :param losses: Of every update, by part; NaN where the part was not due
    :param scalars: Of every update, what else is learned
    :param weights: Of every network and array, its values after the recorded updates on the first axis
    """

    losses: dict[str, th.Tensor]
    scalars: dict[str, th.Tensor]
    weights: dict[str, th.Tensor]


def recording(name: str) -> Case:
    """What is stored of a run."""
    return load(f"08_lockstep_{name}")


def recorded_updates(case: Case) -> list[int]:
    """Numbers of the updates after which weights were recorded."""
    return case["updates"].tolist()  # type: ignore[no-any-return]


def reference(case: Case) -> Trajectory:
    """The trajectory of the reference."""
    expected = {path: value.double() for path, value in sub(case, "expected").items()}
    return Trajectory(
        sub(expected, "loss"),
        {path: expected[path] for path in SCALARS if path in expected},
        {path: value for path, value in expected.items() if path.split("/")[0] in NETWORKS},
    )


def ours(
    name: str,
    case: Case,
    dtype: th.dtype = th.float32,
    until: int = UPDATES,
    change: Callable[[Any], object] = lambda model: None,
) -> Trajectory:
    """
    The trajectory of this package.

    :param name: One of :data:`RUNS`
    :param case: Its recording, of which the first weights are used
    :param dtype: What it computes in
    :param until: Its last update
    :param change: What to do to the model first
    """
    networks = [network for network in NETWORKS if sub(case, f"expected/{network}")]
    losses: dict[str, list[float]] = {part: [] for part in sub(case, "expected/loss")}
    scalars: dict[str, list[float]] = {path: [] for path in SCALARS if f"expected/{path}" in case}
    weights: dict[str, list[th.Tensor]] = {}
    with model_at_the_beginning(name, case, dtype) as model:
        change(model)
        for update in range(1, until + 1):
            metrics = one_update(model, name, update, dtype)
            for part, noted in losses.items():
                noted.append(metrics[f"{part}_loss"].item() if f"{part}_loss" in metrics else math.nan)
            for path, noted in scalars.items():
                noted.append(SCALARS[path](model).item())
            if update in case["updates"]:
                for network in networks:
                    for path, value in weights_of(model, network).items():
                        weights.setdefault(f"{network}/{path}", []).append(value.double())
    return Trajectory(_series(losses), _series(scalars), {path: th.stack(noted) for path, noted in weights.items()})


def _series(noted: dict[str, list[float]]) -> dict[str, th.Tensor]:
    return {name: th.tensor(values, dtype=th.float64) for name, values in noted.items()}


# -- one run ------------------------------------------------------------------------------------------------------------


class NamedDraws(Randomness):
    """
    Draws that follow from their names.

    :param frozen: The draws of an update
    """

    def __init__(self, frozen: FrozenDraws):
        super().__init__()
        self.frozen = frozen

    @override
    def normal(self, shape: Sequence[int], label: str, like: th.Tensor) -> th.Tensor:
        return th.as_tensor(self.frozen.normal(shape, label), dtype=like.dtype)

    @override
    def uniform(self, shape: Sequence[int], label: str, like: th.Tensor, low: float = 0.0, high: float = 1.0) -> th.Tensor:
        return th.as_tensor(self.frozen.uniform(shape, label, low, high), dtype=like.dtype)

    @override
    def truncated_normal(self, shape: Sequence[int], low: th.Tensor, high: th.Tensor, label: str) -> th.Tensor:
        draws = self.frozen.truncated_normal(shape, low.double().numpy(), high.double().numpy(), label)
        return th.as_tensor(draws, dtype=low.dtype)


class Float64Features(FlattenExtractor):
    """Stable-Baselines3 hands float32 to what comes first in a policy."""

    @override
    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).double()


@contextmanager
def model_at_the_beginning(name: str, case: Case, dtype: th.dtype) -> Iterator[Any]:
    """The model of a run with its first weights."""
    algorithm, arguments = RUNS[name]
    first = {**case, **{f"params/critic_target/{path}": value for path, value in sub(case, "params/critic").items()}}
    precise = {} if dtype == th.float32 else {"features_extractor_class": Float64Features}
    model = loaded_model(algorithm, first, policy_kwargs={"state_arch": (16, 16), **precise}, **arguments)
    if model.actor_target is not None:
        load_denoiser(model.actor_target.denoiser, sub(case, "params/actor"))
    model.policy.to(dtype)
    # mixtures of several components are fitted from different beginnings; one component has no beginning
    with mock.patch.object(dacer, "mixture_entropy", partial(mixture_entropy, n_components=1)):
        yield model


def one_update(model: Any, name: str, update: int, dtype: th.dtype) -> dict[str, th.Tensor]:
    """One update of a model on its batch and draws; returns what it logs."""
    frozen = FrozenDraws(name, update)
    data = {key: th.as_tensor(value, dtype=dtype) for key, value in frozen.batch().items()}
    model.randomness = NamedDraws(frozen)
    batch = Batch(
        observations=data["obs"],
        actions=data["action"],
        rewards=data["reward"].squeeze(-1),
        next_observations=data["next_obs"],
        discounts=GAMMA * (1.0 - data["terminal"].squeeze(-1)),
    )
    return model.update(batch)  # type: ignore[no-any-return]


def round_bias_corrections(model: Any) -> None:
    """
    Let the optimizers make the rounding error of the reference's.

    Adam divides its averages by ``1 - beta^t``. The reference computes that in float32, where 0.999 is too large by 1.3e-8:
    one minus it is too small by 1.3e-5 of itself, and every step is too short by half of that.
    """
    for optimizer in model.optimizers:
        optimizer.register_step_pre_hook(_round_bias_correction)


def _round_bias_correction(optimizer: th.optim.Optimizer, args: Any, kwargs: Any) -> None:
    step = 1 + max((int(state["step"]) for state in optimizer.state.values()), default=0)
    for group in optimizer.param_groups:
        exact = [1.0 - beta**step for beta in group["betas"]]
        rounded = [float(np.float32(1.0) - np.float32(beta) ** np.float32(step)) for beta in group["betas"]]
        group.setdefault("exact_lr", group["lr"])
        group["lr"] = group["exact_lr"] * exact[0] / rounded[0] * math.sqrt(rounded[1] / exact[1])


# -- how far apart ------------------------------------------------------------------------------------------------------


def weight_deviations(one: Trajectory, other: Trajectory) -> dict[str, th.Tensor]:
    """
    The largest difference of a weight of a network, divided by its largest weight.

    :return: Of every network, a number for every recorded update that both have reached
    """
    apart: dict[str, list[th.Tensor]] = {}
    size: dict[str, list[th.Tensor]] = {}
    for path, here in one.weights.items():
        network, there = path.split("/")[0], other.weights[path]
        both = min(len(here), len(there))
        apart.setdefault(network, []).append((here[:both] - there[:both]).abs().flatten(1).amax(1))
        size.setdefault(network, []).append(here[:both].abs().flatten(1).amax(1))
    return {network: th.stack(apart[network]).amax(0) / th.stack(size[network]).amax(0) for network in apart}


def series_deviations(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    """
    Differences in units of the number itself, or of its mean magnitude over the run where it is smaller than that, since a
    loss may cross zero.

    :return: Of every series, a number for every update that both have reached; NaN where both have none
    """
    deviations = {}
    for name, here in one.items():
        there = other[name]
        both = min(len(here), len(there))
        assert th.equal(here[:both].isnan(), there[:both].isnan()), f"{name}: not due at the same updates"
        deviations[name] = (here[:both] - there[:both]).abs() / here[:both].abs().clamp(min=here.abs().nanmean().item())
    return deviations
