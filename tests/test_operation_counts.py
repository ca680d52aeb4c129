"""
What an update costs, counted instead of timed: operations, floating-point operations and host synchronisations.

The counts in the test file of each method are upper bounds. ``python -m tests.test_operation_counts <name>`` prints those of
today. A change that lowers them may put them there; one that raises them has to say why.
"""

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_diffusion import kernels
from sb3_diffusion.taxonomy import Method, available_methods, get_method
from tests.cases import ROOT, case, file_of
from tests.helpers import make_filled, with_logger
from tests.rollouts import make
from zoo.speed.flops import FlopCounter

METHODS = [method for method in available_methods() if method.setting == "off-policy"]
ON_POLICY = [method for method in available_methods() if method.setting == "on-policy"]
# operations that make the host wait for the device
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")
UPDATES = 4


class OperationCounter(TorchDispatchMode):
    """Counts the operations that reach the device, by name; views cost nothing and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class CompiledCalls:
    """Stands in for the compiled library and counts its calls."""

    def __init__(self) -> None:
        self.kernels, self.n_calls = kernels.load_kernels(), 0

    def __getattr__(self, name: str) -> Any:
        self.n_calls += 1
        return getattr(self.kernels, name)


def operations_of(call: Callable[[], Any]) -> int:
    """The number of PyTorch's operations, counted without a mode, under which the kernels would keep out."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    return sum(event.count for event in profiler.key_averages() if event.key.startswith("aten::"))


def training(method: Method) -> Callable[[], Any]:
    """``UPDATES`` updates: on transitions, or what is made of a rollout in two epochs of two minibatches."""
    if method in ON_POLICY:
        return with_logger(make(method.load()).learn(1)).train  # type: ignore[no-any-return]
    return partial(with_logger(make_filled(method.load())).train, UPDATES, batch_size=8)


def measure(method: Method) -> dict[str, int]:
    """Totals of ``UPDATES`` updates: the numbers of PyTorch's operations and kilo-FLOP, and of synchronisations."""
    train = training(method)
    train()  # the first updates build the optimizers' state
    with kernels.switched_off():
        with OperationCounter() as operations:
            train()
        with FlopCounter() as flop:
            train()
    return {
        "operations": sum(operations.counts.values()),
        "kflop": flop.total // 1000,
        "synchronisations": sum(operations.counts[name] for name in SYNCHRONISING),
    }


@pytest.mark.parametrize("method", [*METHODS, *ON_POLICY], ids=lambda method: method.name)
def test_an_update_does_not_get_more_expensive(method: Method) -> None:
    bounds, counts = case(method).operation_counts, measure(method)
    assert bounds.keys() == counts.keys(), f"write operation_counts={counts} in CASE of {file_of(method).relative_to(ROOT)}"
    grown = {name: f"{count} > {bounds[name]}" for name, count in counts.items() if count > bounds[name]}
    assert not grown


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_synchronisations_do_not_grow_with_the_number_of_updates(method: Method) -> None:
    """The metrics of a call of ``train()`` are read together, at its end."""
    model = with_logger(make_filled(method.load()))
    model.train(4, batch_size=8)
    counts = []
    for updates in (4, 12):
        with kernels.switched_off(), OperationCounter() as operations:
            model.train(updates, batch_size=8)
        counts.append(sum(operations.counts[name] for name in SYNCHRONISING))
    assert counts[0] == counts[1]


def test_acting_is_one_compiled_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call encodes the state and one runs all steps, however many there are."""
    if kernels.load_kernels() is None:
        pytest.skip("the compiled kernels need a C++ compiler")
    calls = []
    for steps in (3, 12):
        model = make_filled(METHODS[0].load(), policy_kwargs={"diffusion_steps": steps})
        observation = model.observation_space.sample()
        model.predict(observation)
        counter = CompiledCalls()
        monkeypatch.setattr(kernels.loader, "load_kernels", lambda counter=counter: counter)
        operations = operations_of(partial(model.predict, observation))
        monkeypatch.undo()
        calls.append((counter.n_calls, operations))
    assert calls[0] == calls[1]
    assert calls[0][0] <= 3


def test_backpropagation_through_a_chain_is_one_compiled_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the calls of compiled code nor PyTorch's operations of an update grow with the number of steps."""
    if kernels.load_kernels() is None:
        pytest.skip("the compiled kernels need a C++ compiler")
    method = next(method for method in METHODS if method.name == "DACER")
    calls = []
    for steps in (3, 12):
        model = with_logger(make_filled(method.load(), policy_kwargs={"diffusion_steps": steps}))
        model.train(UPDATES, batch_size=8)
        counter = CompiledCalls()
        monkeypatch.setattr(kernels.loader, "load_kernels", lambda counter=counter: counter)
        operations = operations_of(partial(model.train, UPDATES, batch_size=8))
        monkeypatch.undo()
        calls.append((counter.n_calls, operations))
    assert calls[0] == calls[1]


if __name__ == "__main__":
    for chosen in map(get_method, sys.argv[1:] or [method.name for method in (*METHODS, *ON_POLICY)]):
        print(f"{chosen.name}: operation_counts={measure(chosen)},")
