"""One line per method: what follows from it, what a method consists of, and names for classes of the user's own."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from stable_baselines3 import SAC

import sb3_diffusion
from sb3_diffusion import QSM, register_method, taxonomy
from sb3_diffusion.taxonomy import (
    BASELINES,
    CONTRIB,
    FAMILIES,
    GUIDANCE_MECHANISMS,
    METHODS,
    REFERENCE_POLICIES,
    TAXONOMY,
    Method,
    algorithm_name,
    available_methods,
    get_method,
    load_algorithm,
    registered_methods,
)
from tests.cases import ROOT, case, file_of

DIRECTORY = ROOT / "sb3_diffusion"


def generate() -> ModuleType:
    """The script that writes what has to be a file."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the table --------------------------------------------------------------------------------------------------------------


def test_the_papers_table_is_a_view() -> None:
    assert len(TAXONOMY) == 24, "a method that the paper does not list has in_table=False in its line of the taxonomy"
    assert [method for method in METHODS if method in TAXONOMY] == list(TAXONOMY)
    assert all(method.guidance in GUIDANCE_MECHANISMS for method in TAXONOMY)


def test_every_line_is_valid_and_its_names_are_its_own() -> None:
    for method in METHODS:
        assert method.guidance in FAMILIES and method.reference in REFERENCE_POLICIES
        assert method.setting in ("off-policy", "on-policy", "offline")
        assert method.class_name.isidentifier() and method.zoo_name.isascii()
        assert get_method(method.zoo_name) is get_method(method.name) is method
    names = [*(method.zoo_name for method in METHODS), *BASELINES, *CONTRIB]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "guidance", "class_path"),
    [
        ("D-QL", "reparameterization", "sb3_diffusion.reparameterization.dql:DQL"),
        ("Diffusion-DICE", "q_guidance", "sb3_diffusion.q_guidance.diffusiondice:DiffusionDICE"),
        ("iDEM", "q_guidance", "sb3_diffusion.q_guidance.idem:iDEM"),
        ("DACERv2", "reparameterization", "sb3_diffusion.reparameterization.dacerv2:DACERv2"),
        ("IQL", "baselines", "sb3_diffusion.baselines.iql:IQL"),
    ],
)
def test_module_class_and_zoo_name_follow_from_the_name(name: str, guidance: str, class_path: str) -> None:
    method = get_method(name)
    assert (method.guidance, method.class_path) == (guidance, class_path)
    assert method.zoo_name == class_path.partition(":")[0].rpartition(".")[2]


@pytest.mark.parametrize("method", available_methods(), ids=lambda method: method.zoo_name)
def test_an_available_method_is_exported(method: Method) -> None:
    cls = method.load()
    assert f"{cls.__module__}:{cls.__name__}" == method.class_path
    assert getattr(sb3_diffusion, method.class_name) is cls
    assert method.class_name in sb3_diffusion.__all__ and method.class_name in dir(sb3_diffusion)


def test_a_method_that_is_not_available_says_so_in_one_line() -> None:
    for method in METHODS:
        if not method.available:
            with pytest.raises(ImportError) as caught:
                getattr(sb3_diffusion, method.class_name)
            message = str(caught.value)
            assert message.startswith(method.name) and "\n" not in message
            assert all(known.name in message for known in available_methods())
    with pytest.raises(AttributeError, match="no attribute 'Sdak'"):
        getattr(sb3_diffusion, "Sdak")  # noqa: B009  type checkers know that there is none
    with pytest.raises(ValueError, match="did you mean SDAC"):
        get_method("sdak")


def test_availability_is_whether_the_module_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_diffusion import q_guidance

    monkeypatch.setattr(q_guidance, "__path__", [*q_guidance.__path__, str(tmp_path)])
    line = ("Late", "q_guidance", "uniform", "off-policy", "Nobody 2026", "2601.00000")
    assert not Method(*line).available
    (tmp_path / "late.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    importlib.invalidate_caches()
    method = Method(*line)
    assert method.available and method.available  # without importing it
    with pytest.raises(RuntimeError, match="imported"):
        method.load()
    (tmp_path / "late.py").write_text("class Lately: ...\n", encoding="utf-8")
    with pytest.raises(ImportError, match=r"sb3_diffusion\.q_guidance\.late must define the class Late"):
        method.load()


def test_the_taxonomy_is_read_without_pytorch() -> None:
    code = "import sys, sb3_diffusion; sb3_diffusion.__all__; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


# -- what a method consists of ----------------------------------------------------------------------------------------------


def test_every_file_of_a_family_has_a_line() -> None:
    modules = {method.module for method in METHODS}
    files = [path for family in FAMILIES for path in (DIRECTORY / family).glob("*.py") if path.stem != "__init__"]
    assert {f"sb3_diffusion.{path.parent.name}.{path.stem}" for path in files} <= modules, "write its line in taxonomy.py"


@pytest.mark.parametrize("method", available_methods(), ids=lambda method: method.zoo_name)
def test_a_method_has_all_its_files(method: Method) -> None:
    name = method.zoo_name
    files = [file_of(method), ROOT / "docs" / "algorithms" / f"{name}.md", ROOT / "hyperparams" / f"{name}.yml"]
    missing = [str(path.relative_to(ROOT)) for path in files if not path.is_file()]
    if missing:
        pytest.fail(f"write {' and '.join(missing)}, which {method.name} lacks (docs: contributing)", pytrace=False)
    assert case(method).operation_counts


def test_a_missing_test_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import cases

    line = Method("Late", "q_guidance", "uniform", "off-policy", "Nobody 2026", "2601.00000")
    assert cases.wrong_arguments([line]) == []  # collection goes on
    with pytest.raises(pytest.fail.Exception, match=r"write tests/q_guidance/test_late.py, the tests of Late"):
        case(line)
    monkeypatch.setattr(cases, "file_of", lambda method: ROOT / "tests" / "q_guidance" / "__init__.py")
    with pytest.raises(pytest.fail.Exception, match=r"write CASE = MethodCase\(...\) in tests/q_guidance/__init__.py"):
        case(line)


def test_generated_files_are_those_of_the_taxonomy() -> None:
    for path, content in generate().contents().items():
        assert path.is_file() and path.read_text(encoding="utf-8") == content, f"{path.name} is outdated; run: make generate"


def test_type_checkers_see_every_public_name() -> None:
    stub = (DIRECTORY / "__init__.pyi").read_text(encoding="utf-8")
    for name in sb3_diffusion.__all__:
        assert f" import {name} as {name}\n" in stub or name == "__version__", name
    for method in available_methods():
        assert f"from {method.module} import {method.class_name} as" in stub


# -- classes of the user's own ----------------------------------------------------------------------------------------------


class Mine(QSM):
    """A class of the user's own."""


def test_a_registered_class_has_a_name(own_names: None, tmp_path: Path) -> None:
    assert algorithm_name(Mine) is None
    settings = tmp_path / "mine.yml"
    settings.write_text("default: {}\n", encoding="utf-8")
    assert register_method(Mine, settings) is Mine
    assert algorithm_name(Mine) == "mine" and load_algorithm("mine") is Mine
    assert registered_methods()["mine"].settings == settings
    assert "Mine" not in sb3_diffusion.__all__ and Mine.__name__ not in [method.name for method in available_methods()]


def test_registering_again_is_harmless(own_names: None) -> None:
    register_method(Mine)
    register_method(Mine)
    anew: Any = type("Mine", (QSM,), {"__module__": __name__})  # the cell of a notebook, run again
    anew.__qualname__ = Mine.__qualname__
    assert register_method(anew) is anew and load_algorithm("mine") is anew
    assert register_method(QSM) is QSM and load_algorithm("qsm") is QSM and "qsm" not in registered_methods()
    assert register_method(SAC) is SAC and "sac" not in registered_methods()


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("QSM", "sb3_diffusion.q_guidance.qsm:QSM"),
        ("DQL", "sb3_diffusion.reparameterization.dql:DQL"),  # not available, but nobody else's either
        ("Diffusion_Dice", "sb3_diffusion.q_guidance.diffusiondice:DiffusionDICE"),
        ("Ppo", "stable_baselines3.ppo.ppo:PPO"),
        ("TQC", "an algorithm of sb3-contrib"),
        ("Mine", f"{__name__}:Mine"),
    ],
)
def test_names_that_are_taken_are_refused(name: str, owner: str, own_names: None) -> None:
    register_method(Mine)
    before = dict(registered_methods())
    with pytest.raises(ValueError) as caught:
        register_method(type(name, (QSM,), {"__module__": "somewhere"}))
    assert f"the name {name.lower()!r} is that of {owner}; give the class another name." in str(caught.value)
    assert dict(registered_methods()) == before


@pytest.mark.parametrize(
    ("algorithm", "settings", "error", "message"),
    [
        ("mine", None, TypeError, "algorithm='mine' must be a class that derives from an algorithm"),
        (dict, None, TypeError, "must be a class that derives from an algorithm"),
        (type("Été", (QSM,), {}), None, ValueError, "is no name for a file; use letters of ASCII"),
        (Mine, "nowhere/mine.yml", ValueError, "settings='nowhere/mine.yml' is not a file"),
    ],
)
def test_what_cannot_be_registered(algorithm: Any, settings: Any, error: Any, message: str, own_names: None) -> None:
    with pytest.raises(error, match=message):
        register_method(algorithm, settings)
    assert taxonomy._REGISTERED == {}
