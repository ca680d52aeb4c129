"""A data set of an agent that comes with the clone, for which nothing has to be fetched."""

from pathlib import Path

import pytest
import torch as th
from gymnasium import spaces

from sb3_diffusion import load_dataset
from sb3_diffusion.data.stored.catalogue import find
from sb3_diffusion.taxonomy import available_methods
from tests.zoo.processes import ROOT, check, run, script
from zoo.datasets.bundled import make
from zoo.hub.published import PRETRAINED

pytest.importorskip("h5py")
NAME = "pendulum-medium-v0"


def test_what_is_made_is_what_the_name_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB3_DIFFUSION_DATA", str(tmp_path))
    make(find(NAME), tmp_path / f"{NAME}.hdf5", PRETRAINED, n_rows=600)
    data = load_dataset(NAME)
    assert (data.source.name, data.source.env_id, data.n_episodes) == (NAME, "Pendulum-v1", 3)
    assert data.action_space == spaces.Box(-2.0, 2.0, (1,))
    assert float(data.actions.abs().max()) > 1.0
    again = load_dataset(make(find(NAME), tmp_path / "again.hdf5", PRETRAINED, n_rows=600))
    assert th.equal(data.actions, again.actions)


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "few.hdf5"
    assert str(path) in check(run(script("data"), "make", NAME, "--rows", "200", "-o", str(path), cwd=tmp_path))
    assert len(load_dataset(path)) == 199  # the last step of an episode has no successor in this layout


def test_every_method_that_learns_from_data_has_settings_for_it() -> None:
    for method in available_methods():
        if method.setting == "offline":
            text = (ROOT / "hyperparams" / f"{method.zoo_name}.yml").read_text(encoding="utf-8")
            assert f"\n{NAME}:\n" in text, method.name
