"""Fixtures of the whole test suite."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch as th

from sb3_diffusion import taxonomy
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.taxonomy import available_methods

# one thread per test process: the networks are tiny, and the processes of pytest-xdist already fill the cores
th.set_num_threads(1)

ONLINE = [method for method in available_methods() if method.setting == "off-policy"]
OFF_POLICY = [*ONLINE, *(method for method in available_methods() if method.setting == "offline")]
"""Methods that learn from stored transitions, their own or those of others: all of them keep the contract."""

ON_POLICY = [method for method in available_methods() if method.setting == "on-policy"]
"""Methods that learn from what they did last."""

LONG_FILES = ("test_contract.py", "test_learning.py", "zoo/", "test_docs.py", "checkpoints/trainings/")
"""Where the tests are that take longest, which several processes begin with."""

DIFFUSION = [method for method in OFF_POLICY if "DiffusionPolicy" in method.load().policy_aliases]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those of many tests: who begins a long one at the end keeps the other processes waiting."""
    n_tests = Counter(item.path for item in items)

    def rank(item: pytest.Item) -> tuple[int, int, str]:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        place = next((i for i, start in enumerate(LONG_FILES) if name.startswith(start)), len(LONG_FILES))
        return place, -n_tests[item.path], name

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key that marks runs as the user's own is not that of whoever runs the tests."""
    with mock.patch.dict(os.environ, XDG_CONFIG_HOME=str(tmp_path_factory.mktemp("configuration"))):
        yield


@pytest.fixture
def own_names() -> Iterator[None]:
    """No class of the user's own has a name, and those that the test registers are forgotten."""
    with mock.patch.dict(taxonomy._REGISTERED, clear=True):
        yield


@pytest.fixture(params=ONLINE, ids=lambda method: method.zoo_name)
def algorithm(request: pytest.FixtureRequest) -> type[OffPolicyDiffusion]:
    """Every online algorithm: an actor with a denoiser and critics, in this order, is what all of them train."""
    return request.param.load()


@pytest.fixture(params=[m for m in OFF_POLICY if m.name != "BC"], ids=lambda method: method.zoo_name)
def critic_algorithm(request: pytest.FixtureRequest) -> type[OffPolicyDiffusion]:
    """The algorithms with critics."""
    return request.param.load()


@pytest.fixture(params=[m for m in DIFFUSION if m.name != "BC"], ids=lambda method: method.zoo_name)
def chain_algorithm(request: pytest.FixtureRequest) -> type[OffPolicyDiffusion]:
    """The algorithms with a denoiser, whose chain acts or is sampled, and critics."""
    return request.param.load()


@pytest.fixture(params=[m for m in ONLINE if m.load().prediction == "noise"], ids=lambda method: method.zoo_name)
def diffusion_algorithm(request: pytest.FixtureRequest) -> type[OffPolicyDiffusion]:
    """The algorithms whose network predicts noise: those that take every diffusion process, schedule and solver."""
    return request.param.load()


@pytest.fixture(params=[m for m in ONLINE if m.load().prediction == "velocity"], ids=lambda method: method.zoo_name)
def flow_algorithm(request: pytest.FixtureRequest) -> type[OffPolicyDiffusion]:
    """The algorithms whose network predicts a velocity."""
    return request.param.load()


@pytest.fixture(params=[m for m in ONLINE if m.load().prediction == "control"], ids=lambda method: method.zoo_name)
def controlled_algorithm(request: pytest.FixtureRequest) -> type[OffPolicyDiffusion]:
    """The algorithms whose network steers a Langevin diffusion."""
    return request.param.load()
