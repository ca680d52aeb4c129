"""What every sampler promises: draws, shapes, clipping, options, gradients, errors, no state."""

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_diffusion.generative import (
    EDM,
    ContinuousDiffusion,
    CoupledFlow,
    DiscreteDiffusion,
    FlowMatching,
    GenerativeProcess,
    Langevin,
    Randomness,
    RecordedDraws,
)
from sb3_diffusion.generative.coupled_flow import CoupledProcess, CoupledSampler
from sb3_diffusion.generative.flow import FLOW_SOLVERS
from sb3_diffusion.generative.solvers.grid import GridPoint
from sb3_diffusion.generative.solvers.rules import SOLVERS
from sb3_diffusion.generative.solvers.sampler import Sampler
from tests.golden_tools import close

CONTINUOUS, DISCRETE, FLOW = ContinuousDiffusion(), DiscreteDiffusion("cosine", 12), FlowMatching()
CASES: list[tuple[GenerativeProcess, str]] = [
    *((CONTINUOUS, solver) for solver in SOLVERS),
    *((DISCRETE, solver) for solver in SOLVERS),
    *((FLOW, solver) for solver in FLOW_SOLVERS),
]
IDS = [f"{type(process).__name__}-{solver}" for process, solver in CASES]
DIFFUSION_CASES, DIFFUSION_IDS = CASES[:8], IDS[:8]


class Logged(Randomness):
    """Random draws with a list of what was asked for."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(th.Generator().manual_seed(seed))
        self.log: list[tuple[str, tuple[int, ...]]] = []

    def normal(self, shape: Sequence[int], label: str, like: th.Tensor) -> th.Tensor:
        self.log.append((label, tuple(shape)))
        return super().normal(shape, label, like)


def smooth(x: th.Tensor, k: int) -> th.Tensor:
    return th.sin(2 * x) + 0.1 * k


@pytest.mark.parametrize(("process", "solver"), CASES, ids=IDS)
def test_draws_shapes_and_chain(process: GenerativeProcess, solver: str) -> None:
    sampler = process.sampler(6, solver)
    calls: list[int] = []

    def denoise(x: th.Tensor, k: int) -> th.Tensor:
        assert x.shape == (3, 4, 2)
        calls.append(k)
        return smooth(x, k)

    noise = Logged()
    x = sampler.sample(denoise, (3, 4, 2), noise, label="act")
    expected: list[tuple[str, tuple[int, ...]]] = [("act.x_T", (3, 4, 2))]
    if solver == "ddpm":
        expected.append(("act.step_noise", (5, 3, 4, 2)))
    assert noise.log == expected
    assert calls == list(range(len(sampler.times)))
    assert x.shape == (3, 4, 2) and float(x.abs().max()) <= 1.0
    chain = sampler.chain(smooth, (3, 4, 2), Logged(), label="act")
    assert chain.shape == (7, 3, 4, 2)
    assert th.equal(chain[-1], x)
    assert th.equal(chain[0], Logged().normal((3, 4, 2), "", x))
    # the convenience method builds the same sampler
    assert th.equal(process.sample(smooth, (3, 4, 2), Logged(), 6, solver, label="act"), x)
    raw = sampler.sample(smooth, (3, 4, 2), Logged(), clip_output=False)
    assert th.equal(raw.clamp(-1, 1), x)


@pytest.mark.parametrize(("process", "solver"), CASES, ids=IDS)
def test_times_follow_the_direction_of_sampling(process: GenerativeProcess, solver: str) -> None:
    times = process.sampler(6, solver).times
    if isinstance(process, FlowMatching):
        assert bool((times.diff() >= 0).all()) and float(times[0]) == 0.0
    else:
        assert bool((times.diff() < 0).all())
        assert float(times[0]) == pytest.approx(0.9946 if process is CONTINUOUS else 12.0)


@pytest.mark.parametrize(("process", "solver"), CASES, ids=IDS)
def test_one_step_adds_no_noise(process: GenerativeProcess, solver: str) -> None:
    noise = Logged()
    x = process.sampler(1, solver).sample(smooth, (5, 2), noise)
    assert [label for label, _ in noise.log] == ["sample.x_T"]
    assert bool(x.isfinite().all())


@pytest.mark.parametrize(("process", "solver"), CASES, ids=IDS)
def test_rows_do_not_influence_each_other(process: GenerativeProcess, solver: str) -> None:
    sampler = process.sampler(5, solver)
    draws = {"s.x_T": th.randn(4, 2), "s.step_noise": th.randn(5, 4, 2)}
    together = sampler.sample(smooth, (4, 2), RecordedDraws(draws), label="s")
    alone = {"s.x_T": draws["s.x_T"][2:3], "s.step_noise": draws["s.step_noise"][:, 2:3]}
    close(sampler.sample(smooth, (1, 2), RecordedDraws(alone), label="s"), together[2:3], 0.0, 1e-6)


@pytest.mark.parametrize(("process", "solver"), CASES, ids=IDS)
def test_gradient_through_the_whole_chain(process: GenerativeProcess, solver: str) -> None:
    # wide bounds: clipping is part of the graph, but it must not stop the gradient here
    sampler = process.sampler(4, solver, clip_bounds=(-1e4, 1e4)).double()
    noise = Logged()
    like = th.zeros(0, dtype=th.float64)
    draws = RecordedDraws({"s.x_T": noise.normal((2, 2), "", like), "s.step_noise": noise.normal((3, 2, 2), "", like)})
    gains = th.full((len(sampler.times),), 0.3, dtype=th.float64, requires_grad=True)

    def run(gains: th.Tensor) -> th.Tensor:
        return sampler.sample(lambda x, k: gains[k] * th.sin(x + 1), (2, 2), draws, label="s", clip_output=False)

    assert th.autograd.gradcheck(run, gains)
    (gradient,) = th.autograd.grad(run(gains).square().sum(), gains)
    assert bool((gradient != 0).all())
    with th.no_grad():
        close(run(gains), run(gains.detach()), 0.0, 0.0)


@pytest.mark.parametrize(("process", "solver"), DIFFUSION_CASES, ids=DIFFUSION_IDS)
def test_estimates_are_clipped(process: GenerativeProcess, solver: str) -> None:
    def huge(x: th.Tensor, k: int) -> th.Tensor:
        return -100.0 * th.ones_like(x)  # every estimate of the clean sample is far above the box

    clipped = process.sampler(6, solver, variance="posterior").sample(huge, (64, 2), Logged(), clip_output=False)
    # the continuous chain ends at t_min, where the deterministic solvers keep sigma times the implied noise
    slack = 1e-6 if process is DISCRETE else 1e-2 if solver == "ddpm" else 3e-2
    assert float(clipped.max()) <= 1.0 + slack
    free = process.sampler(6, solver, clip=False).sample(huge, (64, 2), Logged(), clip_output=False)
    assert float(free.abs().max()) > 10.0
    bounded = process.sampler(6, solver, clip_bounds=(-0.25, 0.5)).sample(huge, (64, 2), Logged())
    close(bounded, th.full((64, 2), 0.5), 0.0, 0.02)
    assert float(bounded.max()) <= 0.5


@pytest.mark.parametrize(("process", "solver"), DIFFUSION_CASES, ids=DIFFUSION_IDS)
def test_clipping_that_never_acts_changes_nothing(process: GenerativeProcess, solver: str) -> None:
    free = process.sampler(6, solver, clip=False).double()
    loose = process.sampler(6, solver, clip=True, clip_bounds=(-1e6, 1e6)).double()
    raw = process.sampler(6, solver, clip=True, clip_bounds=(-1e6, 1e6), ddim_recompute_noise=False).double()
    want = free.chain(smooth, (5, 2), Logged(), clip_output=False)
    close(loose.chain(smooth, (5, 2), Logged(), clip_output=False), want, 1e-9, 1e-9)
    close(raw.chain(smooth, (5, 2), Logged(), clip_output=False), want, 1e-9, 1e-9)


@pytest.mark.parametrize("solver", ["ddim", "dpm2"])
def test_noise_is_recomputed_after_clipping_by_default(solver: str) -> None:
    sampler = CONTINUOUS.sampler(1, solver).double()
    raw = CONTINUOUS.sampler(1, solver, ddim_recompute_noise=False).double()

    def far(x: th.Tensor, k: int) -> th.Tensor:
        return x - 3.0

    noise = Logged()
    x = noise.normal((6, 1), "", sampler.times)
    (alpha, alpha_next), (sigma, sigma_next) = CONTINUOUS.coefficients(th.tensor([0.9946, 0.001], dtype=th.float64))
    if solver == "ddim":
        clean = ((x - sigma * far(x, 0)) / alpha).clamp(-1, 1)
        close(raw.sample(far, (6, 1), Logged(), clip_output=False), alpha_next * clean + sigma_next * far(x, 0), 1e-6, 1e-6)
        consistent = (x - alpha * clean) / sigma
        close(
            sampler.sample(far, (6, 1), Logged(), clip_output=False), alpha_next * clean + sigma_next * consistent, 1e-6, 1e-6
        )
    different = sampler.chain(far, (6, 1), Logged(), clip_output=False) - raw.chain(far, (6, 1), Logged(), clip_output=False)
    assert float(different.abs().max()) > 1e-3


@pytest.mark.parametrize(("process", "solver"), [*DIFFUSION_CASES, (FLOW, "euler"), (FLOW, "rk4")])
def test_state_clipping(process: GenerativeProcess, solver: str) -> None:
    sampler = process.sampler(6, solver, clip_target="state")
    chain = sampler.chain(lambda x, k: 5 * th.sin(x), (64, 2), Logged(), clip_output=False)
    assert float(chain[1:].abs().max()) <= 1.0
    assert float(chain[0].abs().max()) > 1.0
    ignored = process.sampler(6, solver, clip=False, clip_target="state")
    assert float(ignored.chain(lambda x, k: 5 * th.sin(x), (64, 2), Logged(), clip_output=False)[1:].abs().max()) > 1.0


def test_flow_leaves_the_path_alone() -> None:
    chains = [FLOW.sampler(5, "euler", clip=clip).chain(smooth, (64, 2), Logged()) for clip in (True, False)]
    assert th.equal(*chains)
    assert float(chains[0][1:-1].abs().max()) > 1.0
    assert float(chains[0][-1].abs().max()) <= 1.0


@pytest.mark.parametrize("lower_order_final", [True, False])
def test_noiseless_end_is_reached_with_finite_coefficients(lower_order_final: bool) -> None:
    # the discrete chain ends at sigma = 0, infinitely far away in log-SNR
    sampler = DISCRETE.sampler(6, "dpm++2m", lower_order_final=lower_order_final)
    x = sampler.sample(smooth, (5, 2), Logged(), clip_output=False)
    assert bool(x.isfinite().all())
    # so the last step returns its estimate of the clean sample
    before = sampler.chain(smooth, (5, 2), Logged(), clip_output=False)[-2]
    t = sampler.times[-1].expand(5, 1)
    close(x, DISCRETE.predicted_clean(before, t, smooth(before, 5)).clamp(-1, 1), 1e-5, 1e-5)


@pytest.mark.parametrize("output_std", [0.0, 0.3])
def test_noise_at_the_end_of_a_flow(output_std: float) -> None:
    samplers = FLOW.sampler(6), FLOW.sampler(6, output_std=output_std)
    for kind in ("sample", "chain"):
        want, got = (getattr(sampler, kind)(smooth, (2000, 2), Logged(), clip_output=False) for sampler in samplers)
        added = (got - want)[-1] if kind == "chain" else got - want
        assert float(added.std()) == pytest.approx(output_std, rel=0.05)
        assert kind == "sample" or th.equal(got[:-1], want[:-1])


MODULES: list[nn.Module] = [
    CONTINUOUS,
    ContinuousDiffusion("linear"),
    DISCRETE,
    FLOW,
    EDM(),
    CoupledFlow(),
    CoupledProcess(),
    CoupledSampler(4),
    Langevin.annealed(),
    *(process.sampler(6, solver) for process, solver in CASES),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_modules_have_no_state_and_can_be_moved(module: nn.Module) -> None:
    assert not module.state_dict()
    assert not list(module.parameters())
    double = copy.deepcopy(module).double().to("cpu")
    assert all(buffer.dtype == th.float64 for buffer in double.buffers())
    assert all(buffer.device.type == "meta" for buffer in copy.deepcopy(module).to("meta").buffers())
    assert type(pickle.loads(pickle.dumps(module))) is type(module)


@pytest.mark.parametrize(("process", "solver"), CASES, ids=IDS)
def test_samples_take_the_dtype_of_the_sampler(process: GenerativeProcess, solver: str) -> None:
    sampler = copy.deepcopy(process.sampler(4, solver)).double()
    assert sampler.sample(smooth, (3, 2), Logged()).dtype == th.float64


@pytest.mark.parametrize("process", [CONTINUOUS, DISCRETE, FLOW])
def test_training_times(process: GenerativeProcess) -> None:
    t = process.sample_time((4000, 1), Logged(), "actor.t", like=th.zeros(0))
    assert t.shape == (4000, 1) and t.dtype == th.float32
    if process is DISCRETE:
        assert sorted(set(t.flatten().tolist())) == [float(i) for i in range(1, 13)]
    else:
        low, high = (1e-3, 0.9946) if process is CONTINUOUS else (0.0, 1.0)
        assert low <= float(t.min()) < low + 0.01 and high - 0.01 < float(t.max()) <= high
    alpha, sigma = process.coefficients(t)
    assert alpha.shape == sigma.shape == t.shape


@pytest.mark.parametrize(
    ("process", "options", "message"),
    [
        (CONTINUOUS, {"solver": "euler"}, r"solver='euler'.*ddpm.*ddim.*dpm2.*dpm\+\+2m"),
        (DISCRETE, {"solver": "heun"}, r"solver='heun'.*ddpm"),
        (FLOW, {"solver": "ddpm"}, r"solver='ddpm'.*euler.*heun.*midpoint.*rk4"),
        (CONTINUOUS, {"variance": "small"}, r"variance='small'.*beta.*posterior"),
        (CONTINUOUS, {"clip_target": "output"}, r"clip_target='output'.*x0.*state"),
        (FLOW, {"clip_target": "x0"}, r"clip_target='x0'.*output.*state"),
        (CONTINUOUS, {"clip_bounds": (1.0, -1.0)}, r"low < high, got \(1\.0, -1\.0\)"),
        (FLOW, {"clip_bounds": (0.0, 0.0)}, r"low < high"),
        (CONTINUOUS, {"steps": 0}, "at least 1, got 0"),
        (DISCRETE, {"steps": 0}, "at least 1, got 0"),
        (FLOW, {"steps": -1}, "at least 1, got -1"),
        (DISCRETE, {"steps": 7, "solver": "dpm2"}, "use at most 6"),
    ],
)
def test_wrong_arguments_are_named(process: GenerativeProcess, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        process.sampler(**{"steps": 4, "solver": "euler" if process is FLOW else "ddpm", **options})


@pytest.mark.parametrize("process", [CONTINUOUS, DISCRETE, FLOW])
def test_misspelt_options_are_rejected(process: GenerativeProcess) -> None:
    with pytest.raises(TypeError, match="clip_boundz"):
        process.sampler(4, "euler" if process is FLOW else "ddpm", clip_boundz=(-1.0, 1.0))


def test_grid_is_checked() -> None:
    good = [GridPoint(0.0, 1.0), GridPoint(1.0, 0.5)]
    with pytest.raises(ValueError, match="at least two grid points"):
        Sampler(good[:1])
    with pytest.raises(ValueError, match="decrease strictly"):
        Sampler(good[::-1])
    with pytest.raises(ValueError, match="pass midpoints"):
        Sampler(good, "dpm2")


def test_single_step_arguments_are_named() -> None:
    x, t = th.zeros(2, 1), th.ones(2, 1)
    with pytest.raises(ValueError, match=r"solver='dpm2'.*ddpm.*ddim"):
        DISCRETE.reverse_step(x, t, x, Logged(), "a", solver="dpm2")
    with pytest.raises(ValueError, match="variance='none'"):
        DISCRETE.reverse_step(x, t, x, Logged(), "a", variance="none")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Langevin([], []), "at least one step"),
        (lambda: Langevin([0.1], [0.1, 0.2]), "got 1, 2 and 1"),
        (lambda: Langevin.annealed(n_levels=0), "n_levels=0"),
        (lambda: Langevin.annealed(sigma_min=1.0), r"sigma_min=1\.0"),
        (lambda: Langevin.annealed(steps_per_level=0), "steps_per_level must be at least 1, got 0"),
        (lambda: Langevin.ibc([0.1], clip_bounds=(1.0, 0.0)), "low < high"),
    ],
)
def test_langevin_arguments_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_langevin_draws() -> None:
    noise = Logged()
    sampler = Langevin.annealed(3, 2)
    x = sampler.sample(lambda x, k: -x, (4, 2), noise, label="act")
    assert noise.log == [("act.x_T", (4, 2)), ("act.step_noise", (6, 4, 2))]
    assert x.shape == (4, 2) and float(x.abs().max()) <= 1.0
    assert sampler.chain(lambda x, k: -x, (4, 2), Logged(), label="act", start=th.zeros(2)).shape == (7, 4, 2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_chain_is_one_compiled_graph(solver: str) -> None:
    sampler = CONTINUOUS.sampler(3, solver)
    gain = th.tensor(0.5, requires_grad=True)

    def update(low: th.Tensor) -> th.Tensor:
        noise = Randomness()
        x = sampler.sample(lambda x, k: gain * x + sampler.times[k], (4, 2), noise)
        return x.sum() + noise.truncated_normal((3, 4, 2), low, low + 1, "actor.eps_reverse").sum()

    compiled = th.compile(update, fullgraph=True, backend="eager")
    results = []
    for function in (update, compiled):
        th.manual_seed(0)
        results.append(function(th.zeros(4, 2)))
    close(results[1], results[0], 1e-6, 1e-6)
    close(th.autograd.grad(results[1], gain)[0], th.autograd.grad(results[0], gain)[0], 1e-6, 1e-6)
