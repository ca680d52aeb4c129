"""Settings of others by name, of on-policy and off-policy methods alike."""

from typing import Any

import pytest

from sb3_diffusion import DPMD, DPPO, FPMD, QSM
from sb3_diffusion.taxonomy import available_methods
from tests.helpers import make


def test_dpmd_as_the_papers_text_has_it() -> None:
    paper, ant = DPMD.preset("flowrl_paper"), DPMD.preset("flowrl_paper_ant")
    assert paper == {"weights": "linear", "target_kl": 2.5} and ant == {**paper, "particle_noise": 0.1}
    for algorithm in (DPMD, FPMD):
        model = make(algorithm, **algorithm.preset("flowrl_paper_ant"), n_particles=16)
        assert (model.weights, model.target_kl, model.particle_noise) == ("linear", 2.5, 0.1)


def test_names_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"name='flowrl_papers'; known are flowrl_paper, flowrl_paper_ant\."):
        DPMD.preset("flowrl_papers")
    with pytest.raises(ValueError, match=r"name='flowrl'; known are flowrl_paper, flowrl_code\."):
        DPPO.preset("flowrl")
    with pytest.raises(ValueError, match=r"QSM has no presets"):
        QSM.preset("flowrl_paper")


def test_presets_are_arguments() -> None:
    """Whatever a preset names, its method takes."""
    for method in available_methods():
        algorithm: Any = method.load()
        for name in {name for base in algorithm.__mro__ for name in vars(base).get("presets", {})}:
            known = algorithm.__signature__.parameters
            assert set(algorithm.preset(name)) <= set(known), (method.name, name)
