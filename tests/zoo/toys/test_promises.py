"""What methods promise on a toy: the laws behind the samples of the picture."""

import argparse
import sys
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion.envs import boltzmann_density, get_toy
from sb3_diffusion.taxonomy import get_method

pytest.importorskip("matplotlib")
from zoo.plot_toy import parse_arguments
from zoo.toys import promises
from zoo.toys.densities import total_variation
from zoo.toys.promises import Promise, promise_of
from zoo.toys.training import begin, make_model, toy_problem

SMALL = ["--updates", "20", "--random-steps", "40", "--batch-size", "8", "--width", "8"]


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["plot_toy.py", *SMALL])
    monkeypatch.setattr(promises, "N_SAMPLES", 20_000)
    return parse_arguments()


def promised(name: str, args: argparse.Namespace) -> tuple[Promise, np.ndarray, Any]:
    density = boltzmann_density(get_toy(args.toy).value, args.temperature, 400)
    method = get_method(name)
    problem = toy_problem(args)
    model = make_model(method, args, problem)
    begin(model, args, problem.value)
    return promise_of(method, model, args, density), density, model


@pytest.mark.parametrize("name", ["sdac", "idem", "dime"])
def test_methods_of_maximum_entropy_promise_the_density(name: str, arguments: argparse.Namespace) -> None:
    promise, density, _ = promised(name, arguments)
    assert promise.density is density and promise.label == "exp(Q / λ)"
    assert density[density >= promise.level].sum() / density.sum() == pytest.approx(0.9, abs=1e-3)


def test_a_maximiser_promises_a_maximum(arguments: argparse.Namespace) -> None:
    promise, density, _ = promised("dacer", arguments)
    assert promise.label == "a maximum of Q"
    axis = np.linspace(-1, 1, 801)[1::2]
    rows, columns = np.nonzero(density >= promise.level)
    distances = np.hypot(axis[columns], axis[rows])
    # near one of the eight centres, which lie on a circle
    assert distances.min() > 0.6 and distances.max() < 0.8


def test_mirror_descent_goes_on_from_the_policy_after_its_first_update(arguments: argparse.Namespace) -> None:
    promise, _, model = promised("dpmd", arguments)
    assert model._n_updates == 1
    for now, reference in zip(model.actor.parameters(), model.actor_target.parameters(), strict=True):
        assert th.equal(now, reference)  # what the first update left is what the first round is relative to
    actions, _ = model.predict(np.zeros((20_000, 1), np.float32), deterministic=False)
    value = get_toy(arguments.toy).value
    weights = (value(th.as_tensor(actions)) / arguments.temperature).double().softmax(0).numpy()
    drawn = np.random.default_rng(0).choice(len(actions), 20_000, p=weights)
    assert total_variation(actions[drawn], promise.density) < 0.15
    assert promise.density.mean() * 4.0 == pytest.approx(1.0)


def test_mirror_descent_on_learned_values_promises_no_law_of_its_own(arguments: argparse.Namespace) -> None:
    arguments.critic = "learned"
    promise, density, _ = promised("fpmd", arguments)
    assert promise.density is density and promise.label == "mirror descent"


def test_the_chain_of_qsm_is_that_of_its_regression(arguments: argparse.Namespace) -> None:
    promise, density, model = promised("qsm", arguments)
    # its network, replaced by the target of its loss, samples this law
    chain = model.actor.acting_chain
    batch = argparse.Namespace(observations=th.zeros(20_000, 1))

    def denoise(x: th.Tensor, k: int) -> th.Tensor:
        _, sigma = model.actor.process.coefficients(chain.times[k].view(1, 1))
        return model.noise_target(batch, x, sigma)[0]

    with th.no_grad():
        samples = chain.sample(denoise, (20_000, 2), model.randomness, "test").numpy()
    assert total_variation(samples, promise.density) < 0.18
    assert total_variation(samples, density) > 0.3
