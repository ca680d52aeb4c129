"""Policies that leave the library: ``torch.export`` and ONNX, for any number of rows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_diffusion import DACER, DIME, DPS, FPMD, QGPO, QSM, SDAC
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from tests.environments import PointEnv
from tests.helpers import make, observations, to_tensors

#: Of an example; none of them may become a constant of the program.
EXAMPLE = 5
#: The largest takes other functions of Mish than the example; 2, 3 and 10 are sizes of actions, observations and candidates.
BATCHES = (1, 2, 3, EXAMPLE, 10, 512)


@dataclass(frozen=True)
class Case:
    algorithm: type[OffPolicyDiffusion]
    policy_kwargs: dict[str, Any] = field(default_factory=dict)
    observation: str = "box"

    def build(self) -> Any:
        # without the gain most of the actions lie on the edge of the box
        options = {"diffusion_steps": 2, "net_arch": [32, 32], "activation_fn": "mish", "output_gain": 0.3, "state_arch": [16]}
        model = make(self.algorithm, PointEnv(self.observation), policy_kwargs={**options, **self.policy_kwargs})
        model.policy.set_training_mode(False)
        return model


CASES = {
    "best of 10": Case(SDAC, {"n_action_candidates": 10}),
    "simba": Case(DACER, {"backbone": "simba"}),
    "flow": Case(FPMD, {"n_action_candidates": 1}),
    "controlled": Case(DIME),
    "bronet, targets choose": Case(DPS, {"backbone": "bronet", "n_action_candidates": 3, "choose_with_target": True}),
    "relu, no state network": Case(SDAC, {"activation_fn": "relu", "state_arch": []}),
    "discrete, dpm++2m": Case(QSM, {"process": "discrete", "solver": "dpm++2m"}),
    "dict": Case(SDAC, observation="dict"),
    "image": Case(SDAC, observation="image"),
}


def free_batch(example: Any) -> Any:
    """What exporters call the dynamic shapes of observations."""
    batch = th.export.Dim("batch")
    return {key: {0: batch} for key in example} if isinstance(example, dict) else {0: batch}


def assert_same(model: Any, run: Callable[[Any], th.Tensor], expect: Callable[[Any], th.Tensor]) -> None:
    """The program acts like the policy, whatever the number of rows."""
    for n in BATCHES:
        obs = to_tensors(model, observations(model.observation_space, n, seed=n))
        with th.no_grad():
            got, want = run(obs), expect(obs)
            assert got.shape == want.shape == (n, 2)
            # of two candidates that are worth the same, rounding chooses
            same = th.isclose(got, want, rtol=0, atol=1e-4).all(1)
            values = [model.policy.critic.q(actions, model.policy.critic.encode(obs)) for actions in (got, want)]
        assert same.float().mean() > 0.99 or n == 1
        th.testing.assert_close(*values, rtol=0, atol=1e-4)
    assert want.std(0).min() > 1e-3, "all rows are the same, so nothing was tested"


@pytest.mark.parametrize("name", ["simba", "dict"])
def test_torch_export_of_an_actor_takes_any_number_of_rows(name: str) -> None:
    model = CASES[name].build()
    example = to_tensors(model, observations(model.observation_space, EXAMPLE))
    program = th.export.export(model.actor, (example,), dynamic_shapes=(free_batch(example),))
    assert_same(model, program.module(), model.actor)


@pytest.mark.parametrize(("name", "strict"), [*((name, False) for name in CASES), ("flow", True)])
def test_torch_export_of_a_policy_takes_any_number_of_rows(name: str, strict: bool) -> None:
    model = CASES[name].build()
    example = to_tensors(model, observations(model.observation_space, EXAMPLE))
    shapes = {"obs": free_batch(example), "deterministic": None}
    program = th.export.export(model.policy, (example,), {"deterministic": True}, dynamic_shapes=shapes, strict=strict)
    run = program.module()
    assert_same(model, lambda obs: run(obs, deterministic=True), lambda obs: model.policy(obs, deterministic=True))


def test_behaviour_can_be_exported() -> None:
    """Actions of the training draw new noise in every call."""
    model = make(SDAC, policy_kwargs={"n_behavior_candidates": 4, "exploration_noise": 0.1})
    model.policy.set_training_mode(False)
    program = th.export.export(model.policy, (th.zeros(EXAMPLE, 3),), dynamic_shapes=(free_batch(None),))
    run = program.module()
    for n in BATCHES:
        one, other = (run(th.zeros(n, 3)) for _ in range(2))
        assert one.shape == (n, 2) and one.abs().max() <= 1.0 and not th.equal(one, other)


def test_a_guided_chain_says_that_it_cannot_leave() -> None:
    """The gradient of its guide would be a constant of the program."""
    example = th.zeros(EXAMPLE, 3)
    for model in (make(QGPO), make(DPS, score_injection="online", normalize_gradient=False)):
        model.policy.set_training_mode(False)
        exports: tuple[Any, ...] = (th.export.export, partial(th.jit.trace, check_trace=False))
        for export in exports:
            with pytest.raises(RuntimeError, match="guided chain"):
                export(model.policy, (example,))
    imitator = make(QGPO).actor.eval()
    th.testing.assert_close(th.export.export(imitator, (example,)).module()(example), imitator(example), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["best of 10", "simba", "flow", "dict"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:# The axis name")
def test_onnx_takes_any_number_of_rows(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx.export(dynamo=True) needs onnx and onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="an ONNX file is run with onnxruntime")
    model = CASES[name].build()
    example = to_tensors(model, observations(model.observation_space, EXAMPLE))
    shapes = {"observations": free_batch(example)}
    path = tmp_path / "actor.onnx"
    th.onnx.export(model.actor, (), path, kwargs={"observations": example}, dynamic_shapes=shapes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = [node.name for node in session.get_inputs()]

    def run(obs: Any) -> th.Tensor:
        parts = list(obs.values()) if isinstance(obs, dict) else [obs]
        (actions,) = session.run(None, dict(zip(inputs, [part.numpy() for part in parts], strict=True)))
        return th.from_numpy(actions)

    assert_same(model, run, model.actor)
