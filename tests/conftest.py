"""Fixtures of the whole test suite."""

import pytest
import torch as th

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.taxonomy import available_methods

# one thread per test process: the networks are tiny, and the processes of pytest-xdist already fill the cores
th.set_num_threads(1)

OFF_POLICY = [method for method in available_methods() if method.setting == "off-policy"]


@pytest.fixture(params=OFF_POLICY, ids=lambda method: method.zoo_name)
def algorithm(request: pytest.FixtureRequest) -> type[OffPolicyDiffusion]:
    """Every off-policy algorithm that the taxonomy lists as available."""
    return request.param.load()
