"""A grid in a YAML file says what it is, and what is wrong with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.zoo.benchmarking.test_export import finish
from tests.zoo.processes import ROOT
from zoo.benchmark import make_cells, make_parser
from zoo.benchmarking.cells import Settings, plan
from zoo.benchmarking.description import check_changes, read_description
from zoo.benchmarking.export import export

GRIDS = sorted((ROOT / "docs" / "data" / "benchmark").glob("*.yml"))
PACKAGES = {
    "dm_control/": ("dm_control", "shimmy"),
    "dapg/": ("gymnasium_robotics",),
    "cube-": ("ogbench",),
    **dict.fromkeys(("Swimmer", "Hopper", "HalfCheetah", "Ant", "Humanoid", "Inverted", "rlzoo/"), ("mujoco",)),
}
"""What names of environments begin with -> the packages that they need."""
PLAIN: dict[str, Any] = {
    "title": "Rings",
    "question": "Who finds them?",
    "algorithms": {"sac": None, "sdac": {"n_particles": {"value": 4, "why": "fast"}}},
    "environments": ["toy/rings-v0", "Pendulum-v1"],
    "seeds": [3, 1],
    "budget": 300,
    "evaluation": {"every": 150, "episodes": 2, "environments": 2},
    "settings": {"learning_starts": {"value": 100, "why": "short"}},
}
Write = Callable[..., Path]


@pytest.fixture
def grid(tmp_path: Path) -> Write:
    """Writes the grid above with other values; ``None`` leaves a key out."""

    def write(**others: Any) -> Path:
        content = {key: value for key, value in {**PLAIN, **others}.items() if value is not None}
        path = tmp_path / "rings.yml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write


def test_cells_come_seed_by_seed_with_the_settings_of_their_algorithm(grid: Write, tmp_path: Path) -> None:
    cells = read_description(grid()).cells(tmp_path)
    assert [(cell.seed, cell.env, cell.algo) for cell in cells[:4]] == [
        (3, "toy/rings-v0", "sac"),
        (3, "toy/rings-v0", "sdac"),
        (3, "Pendulum-v1", "sac"),
        (3, "Pendulum-v1", "sdac"),
    ]
    assert {cell.seed for cell in cells[4:]} == {1}
    common = Settings(300, 150, 2, 2, params=("learning_starts:100",))
    assert cells[0].settings == common
    assert cells[1].settings.params == ("learning_starts:100", "n_particles:4")


def test_a_setting_of_an_algorithm_replaces_that_of_all(grid: Write) -> None:
    own = {"learning_starts": {"value": 50, "why": "shorter"}, "learning_rate": {"value": "lin_3e-4", "why": "falls"}}
    description = read_description(grid(algorithms={"sac": own, "qsm": None}))
    assert description.settings_of("sac").params == ("learning_starts:50", "learning_rate:lin_3e-4")
    assert description.settings_of("qsm").params == ("learning_starts:100",)
    check_changes(description)


def test_a_variant_is_compared_under_a_name_of_its_own(grid: Write, tmp_path: Path) -> None:
    few = {"algorithm": "sdac", "n_particles": {"value": 2, "why": "fewer"}}
    path = grid(algorithms={"sdac": None, "sdac-few": few}, environments=["Pendulum-v1"], seeds=[0])
    description = read_description(path)
    check_changes(description)
    whole, variant = description.cells(tmp_path)
    assert (variant.algo, variant.trained) == ("sdac-few", "sdac") and whole.trained == "sdac"
    assert variant.folder == tmp_path / "sdac-few" / "Pendulum-v1" / "seed-0"
    assert "--algo sdac " in variant.command and "n_particles:2" in variant.command
    assert "algorithm" not in whole.describe()["settings"]  # cells of before there were variants are the same
    assert variant.describe()["settings"]["algorithm"] == "sdac"
    plan([whole, variant])
    others = read_description(
        grid(algorithms={"sdac-few": {**few, "algorithm": "sac"}}, environments=["Pendulum-v1"], seeds=[0])
    )
    with pytest.raises(ValueError, match=r"algorithm sdac \(not sac\)"):
        plan(others.cells(tmp_path))


def test_nested_settings_reach_the_command_line(grid: Write, tmp_path: Path) -> None:
    value = {"backbone": "simba", "net_arch": {"pi": [8, 8], "qf": [8]}, "dropout": None}
    description = read_description(grid(algorithms={"qsm": {"policy_kwargs": {"value": value, "why": "small"}}}))
    cell = description.cells(tmp_path)[0]
    assert cell.settings.params[1] == f"policy_kwargs:{value}"
    check_changes(description)


def test_a_member_of_a_dictionary_reaches_the_command_line(grid: Write, tmp_path: Path) -> None:
    description = read_description(grid(algorithms={"qsm": {"policy_kwargs.clip_target": {"value": "'none'", "why": "text"}}}))
    assert description.cells(tmp_path)[0].settings.params[1] == "policy_kwargs.clip_target:'none'"
    check_changes(description)


def test_part_of_a_grid(grid: Write, tmp_path: Path) -> None:
    description = read_description(grid()).only(algos=["sdac"], envs=None, seeds=[1])
    assert [(cell.algo, cell.env, cell.seed) for cell in description.cells(tmp_path)] == [
        ("sdac", "toy/rings-v0", 1),
        ("sdac", "Pendulum-v1", 1),
    ]
    with pytest.raises(ValueError, match=r"--algos qsm is not in .*rings\.yml, which has sac, sdac; add it there"):
        description = read_description(grid()).only(algos=["qsm"])
    with pytest.raises(ValueError, match="--seeds 0 is not in"):
        read_description(grid()).only(seeds=[0])


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"title": None}, "lacks title; add it"),
        ({"title": None, "seeds": None}, "lacks title, seeds; add them"),
        ({"seed": [1]}, "seed: there is no such key; did you mean seeds?"),
        ({"title": 7}, "title: 7 is not what belongs there; give a text"),
        ({"question": " "}, "question: ' ' is not what belongs there"),
        ({"seeds": 3}, "seeds: 3 is not what belongs there; give a list such as"),
        ({"seeds": []}, "seeds: [] is not"),
        ({"seeds": [0, -1]}, "seeds: -1 is not what belongs there; give a whole number of at least 0"),
        ({"seeds": [True]}, "seeds: True is not"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
        ({"seeds": ["0"]}, "seeds: '0' is not"),
        ({"budget": 0}, "budget: 0 is not what belongs there; give a whole number of at least 1"),
        ({"budget": 1.5}, "budget: 1.5 is not"),
        ({"budget": "15k"}, "budget: '15k' is not"),
        ({"environments": "Hopper-v5"}, "environments: 'Hopper-v5' is not what belongs there; give a list of names"),
        ({"environments": [None]}, "environments: None is not what belongs there; give a name"),
        ({"algorithms": ["sac"]}, "algorithms: ['sac'] is not what belongs there; give names"),
        ({"algorithms": {"sac": 3}}, "algorithms: sac: 3 is not what belongs there; give nothing, or what it changes"),
        ({"algorithms": {7: None}}, "algorithms: 7: 7 is not what belongs there; give a name"),
        ({"algorithms": {"sac": {"gamma": 0.9}}}, "algorithms: sac: gamma: 0.9 is not what belongs there; give its value and"),
        (
            {"settings": {"gamma": {"value": 0.9}}},
            "settings: gamma: {'value': 0.9} is not what belongs there; give its value and",
        ),
        ({"settings": {"gamma": {"value": 0.9, "why": ""}}}, "settings: gamma: why: '' is not"),
        ({"settings": {"a b": {"value": 1, "why": "x"}}}, "settings: a b: 'a b:1' is not of the form key:value"),
        (
            {"settings": {"gamma": {"value": float("nan"), "why": "x"}}},
            "gamma: nan is not what belongs there; give a value that",
        ),
        ({"settings": {"gamma": {"value": "open('x')", "why": "x"}}}, "gamma: gamma: \"open('x')\" is no value"),
        ({"algorithms": {"sac": {"algorithm": "sdac"}}}, "sac: algorithm: a variant cannot be called 'sac'; give a name"),
        ({"algorithms": {"../sac": {"algorithm": "sdac"}}}, "a variant cannot be called '../sac'"),
        (
            {"algorithms": {"sac-b": {"algorithm": 3}}},
            "algorithms: sac-b: algorithm: 3 is not what belongs there; give a text",
        ),
        ({"evaluation": {"each": 3}}, "evaluation: each: there is no such key; known are every, episodes, environments"),
        ({"evaluation": {"every": 0}}, "evaluation: every: 0 is not"),
        ({"evaluation": {}}, "evaluation: {} is not"),
        ({"device": 0}, "device: 0 is not what belongs there; give a text"),
        ({"seeds": list(range(3_000))}, "has 12,000 trainings, more than 10,000; divide it"),
    ],
)
def test_mistakes_name_file_key_value_and_remedy(grid: Write, others: dict[str, Any], words: str) -> None:
    path = grid(**others)
    with pytest.raises(ValueError) as caught:
        read_description(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: !!python/object/apply:os.system [id]", "refused"),
        ("title: &a [1]\nseeds: [*a, *a", "not readable as YAML"),
        (
            "a: &a [x, x, x, x]\n"
            + "".join(
                f"b{i}: &b{i} [{', '.join([f'*{p}'] * 9)}]\n" for i, p in enumerate(["a", *(f"b{i}" for i in range(8))])
            ),
            "more than 100,000 values",
        ),
        ("- a list", "must contain a mapping"),
        ("budget: " + "9" * 5_000, "more than 20 digits"),
        ("title: \x00", "not readable as YAML"),
        ("x: " + "[" * 5_000, "not readable as YAML"),
        ('"\\e[31mred": 1', "\\x1b[31mred: there is no such key"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "hostile.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_description(path)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("twice", ["seeds: [0]\nseeds: [1]", "algorithms:\n  sac:\n  sac: {gamma: {value: 0.9, why: x}}"])
def test_names_that_are_there_twice(tmp_path: Path, twice: str) -> None:
    path = tmp_path / "twice.yml"
    path.write_text(f"title: x\n{twice}\n", encoding="utf-8")
    line = 2 + twice.count("\n")
    name = twice.splitlines()[-1].strip().partition(":")[0]
    with pytest.raises(ValueError, match=rf"twice.yml, line {line}: '{name}' is there twice; put both into one entry"):
        read_description(path)


def test_a_missing_file_says_what_there_is(tmp_path: Path, grid: Write) -> None:
    path = grid()
    with pytest.raises(ValueError, match=r"no such file; there are .*rings\.yml"):
        read_description(path.with_name("ring.yml"))


@pytest.mark.parametrize(
    ("algorithms", "words"),
    [
        (
            {"sdac": {"n_particle": {"value": 4, "why": "x"}}},
            "rings.yml, algorithms: sdac): SDAC has no argument 'n_particle'",
        ),
        ({"sac": {"batch_size": {"value": 0, "why": "x"}}}, "rings.yml, algorithms: sac) must be a whole number"),
        ({"sac": {"seed": {"value": 0, "why": "x"}}}, "this is the option --seed"),
        ({"qsm": {"policy_kwargs.net_arc": {"value": [8], "why": "x"}}}, "DiffusionPolicy has no argument 'net_arc'"),
        ({"qsm": {"tau.x": {"value": 1, "why": "x"}}}, "tau has no members"),
    ],
)
def test_wrong_settings_are_known_before_the_first_training(grid: Write, algorithms: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_changes(read_description(grid(algorithms=algorithms)))
    assert words in str(caught.value)


# -- the command -----------------------------------------------------------------------------------------------------------


def cells_of(*arguments: str) -> list[Any]:
    return make_cells(make_parser().parse_args(["run", *arguments]))


def test_a_grid_has_a_folder_of_its_own(grid: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = grid()
    assert cells_of("--grid", str(path))[0].root == tmp_path / "logs" / "benchmark" / "rings"
    assert cells_of("--grid", str(path), "-f", "here")[0].root == tmp_path / "here"
    part = cells_of("--grid", str(path), "--algos", "sac", "--seeds", "1", "--envs", "Pendulum-v1")
    assert [str(cell) for cell in part] == ["sac Pendulum-v1 seed 1"]


def test_what_others_have_trained_is_left_out(grid: Write, tmp_path: Path) -> None:
    path = grid(environments=["Pendulum-v1"])
    cells = cells_of("--grid", str(path), "-f", str(tmp_path / "here"))
    finish(cells[0], 1.0)
    export(tmp_path / "here", tmp_path / "numbers" / "rings", cells)
    there = ["--grid", str(path), "-f", str(tmp_path / "there")]
    known = ["--exported", str(tmp_path / "numbers")]
    assert [str(cell) for cell in cells_of(*there, *known)] == [str(cell) for cell in cells[1:]]
    assert len(cells_of(*there)) == len(cells)
    with pytest.raises(ValueError, match=r"--exported .*rings has a result of all 1 trainings; without --exported"):
        cells_of(*there, *known, "--algos", "sac", "--seeds", "3")
    with pytest.raises(ValueError, match=r"--exported numbers needs a --grid"):
        cells_of("--algos", "sac", "--envs", "Pendulum-v1", "--seeds", "0", "--exported", "numbers")


def test_the_same_cells_as_by_hand(grid: Write, tmp_path: Path) -> None:
    described = cells_of("--grid", str(grid()), "-f", str(tmp_path), "--algos", "sdac")
    options = ("-n", "300", "--eval-freq", "150", "--eval-episodes", "2", "--n-eval-envs", "2")
    names = ("--algos", "sdac", "--envs", "toy/rings-v0", "Pendulum-v1", "--seeds", "3", "1")
    by_hand = cells_of(*names, *options, "-f", str(tmp_path), "-params", "learning_starts:100", "n_particles:4")
    assert described == by_hand
    plan(by_hand)
    plan(described)  # they are one benchmark


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "10"], "--n-timesteps is said by the file of --grid; change it there"),
        (["-params", "gamma:0.9"], "--hyperparams is said by the file of --grid"),
        (["--eval-freq", "10"], "--eval-freq is said by"),
        (["--algos", "qsm"], "--algos qsm is not in"),
    ],
)
def test_what_the_file_says_is_not_said_twice(grid: Write, arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        cells_of("--grid", str(grid()), *arguments)
    assert words in str(caught.value)


def test_the_algorithm_of_a_variant_has_to_be_one(grid: Write) -> None:
    with pytest.raises(ValueError, match="unknown algorithm 'sdak'"):
        cells_of("--grid", str(grid(algorithms={"sdac-few": {"algorithm": "sdak"}})))


def test_unknown_names_in_a_grid(grid: Write) -> None:
    with pytest.raises(ValueError, match="unknown algorithm 'sdca'; did you mean"):
        cells_of("--grid", str(grid(algorithms={"sdca": None})))
    with pytest.raises(ValueError, match="unknown environment 'Pendulum-v9'"):
        cells_of("--grid", str(grid(environments=["Pendulum-v9"])))


def test_without_a_grid_everything_has_to_be_named() -> None:
    with pytest.raises(ValueError, match="--seeds is missing; name algorithms, environments and seeds, or give a --grid"):
        cells_of("--algos", "sac", "--envs", "Pendulum-v1")


# -- those of the documentation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grids_of_the_documentation(path: Path, tmp_path: Path) -> None:
    for start, packages in PACKAGES.items():
        if any(env.startswith(start) for env in read_description(path).environments):
            for package in packages:
                pytest.importorskip(package)
    cells = cells_of("--grid", str(path), "-f", str(tmp_path))
    assert len(cells) == len({cell.folder for cell in cells})


def test_the_standing_benchmark_is_there() -> None:
    assert {"inverted-double-pendulum", "hopper", "halfcheetah", "cheetah-run", "offline", "ablations"} <= {
        path.stem for path in GRIDS
    }
