"""What is searched stands in the settings file of the algorithm, beside its environments."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3 import PPO

from sb3_diffusion import DPMD, SDAC
from sb3_diffusion.taxonomy import available_methods, get_method
from tests.zoo.training.options.test_hyperparams import text_of
from zoo.training.options.registry import register_algorithms, use_search_space
from zoo.training.options.search_space import COMMON, convert_params, parse_search, search_space
from zoo.training.options.settings import choose_entry, hyperparameter_file, read_entries, read_file

register_algorithms()

COMMON_DISTRIBUTIONS = {
    "one_minus_gamma": FloatDistribution(1e-3, 0.05, log=True),
    "batch_size_pow": IntDistribution(7, 10),
    "tau": FloatDistribution(1e-3, 0.05, log=True),
    "learning_rate": FloatDistribution(3e-5, 1e-3, log=True),
}


def drawn(algo: str) -> dict[str, Any]:
    """Parameter -> distribution of a trial."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    arguments = HYPERPARAMS_SAMPLER[algo](trial, 1, 1, {})
    assert HYPERPARAMS_CONVERTER[algo](trial.params) == arguments  # what --trial-id reads back from a study
    return trial.distributions


@pytest.mark.parametrize(
    ("algo", "own"),
    [
        (
            "sdac",
            {"temperature": FloatDistribution(5e-3, 5.0, log=True), "n_particles": CategoricalDistribution((16, 64, 256))},
        ),
        (
            "dacer",
            {
                "reward_scale": FloatDistribution(0.05, 1.0, log=True),
                "noise_scale": FloatDistribution(0.03, 0.3, log=True),
                "alpha_update_interval": CategoricalDistribution((500, 2000, 10_000)),
                "policy_delay": IntDistribution(1, 2),
            },
        ),
        (
            "qsm",
            {
                "temperature": FloatDistribution(0.01, 1.0, log=True),
                "exploration_noise": FloatDistribution(0.0, 0.3),
                "target_action_noise": FloatDistribution(0.0, 0.2),
            },
        ),
    ],
)
def test_the_distributions_are_those_of_the_file(algo: str, own: dict[str, Any]) -> None:
    assert drawn(algo) == {**COMMON_DISTRIBUTIONS, **own}


@pytest.mark.parametrize("algo", [method.zoo_name for method in available_methods()])
def test_every_method_has_a_search_space_of_its_own(algo: str) -> None:
    text_of(algo)
    config = str(hyperparameter_file(algo))
    assert read_file(config).get("search"), f"write the entry search of hyperparams/{algo}.yml"
    assert "search" not in read_entries(config)
    on_policy = get_method(algo).setting == "on-policy"  # without target networks, and with batches that are shares
    assert set(drawn(algo)) > set(COMMON_DISTRIBUTIONS) - ({"tau", "batch_size_pow"} if on_policy else set())


def test_an_entry_replaces_the_common_one() -> None:
    space = search_space(SDAC, "mine.yml", {"gamma": {"choices": [0.9, 0.99]}, "tau": {"low": 0.1, "high": 0.2}})
    assert [dimension.name for dimension in space] == ["batch_size_pow", "learning_rate", "gamma", "tau"]
    assert convert_params({"gamma": 0.9, "tau": 0.1}) == {"gamma": 0.9, "tau": 0.1}


def test_what_an_algorithm_lacks_is_not_drawn() -> None:
    names = [dimension.name for dimension in search_space(PPO, "ppo.yml", {})]
    assert names == [COMMON[name].name for name in ("gamma", "batch_size", "learning_rate")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (5, "5 must be {low: 0.1, high: 10.0}"),
        ([1, 2], r"\[1, 2\] must be {low"),
        ({"low": 1.0}, "must be {low"),
        ({"low": 1.0, "high": 2.0, "step": 0.5}, "must be {low"),
        ({"choices": [1, 2], "log": True}, "must be {low"),
        ({"choices": []}, r"choices=\[\] must be a list"),
        ({"choices": 3}, "choices=3 must be a list"),
        ({"choices": [[64, 64]]}, r"choices=\[\[64, 64\]\] must be a list of numbers"),
        ({"choices": [float("nan")]}, "must be a list of numbers"),
        ({"low": "3e-4", "high": 1.0}, r"low='3e-4' must be a number \(YAML takes 1e-3 for text; write 1.0e-3\)"),
        ({"low": True, "high": 2}, "low=True must be a number"),
        ({"low": 0.0, "high": float("inf")}, "high=inf must be a number"),
        ({"low": 2.0, "high": 1.0}, "low=2.0 must be below high=1.0"),
        ({"low": 0.0, "high": 1.0, "log": True}, "low=0.0 must be positive, as log is true"),
        ({"low": 0.1, "high": 1.0, "log": 1}, "log=1 must be true or false"),
    ],
)
def test_a_wrong_entry_is_one_line(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^settings file mine.yml, search: temperature: .*{message}") as caught:
        parse_search("mine.yml", {"temperature": entry})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entries", [None, [], "temperature", 3])
def test_a_search_that_is_no_mapping_is_one_line(entries: Any) -> None:
    with pytest.raises(ValueError, match=r"^settings file mine.yml, search: .* must be names of arguments with what to draw"):
        parse_search("mine.yml", entries)


@pytest.mark.parametrize(
    ("name", "message"),
    [("temperatures", "did you mean temperature"), ("env", "it is not searched"), ("policy_kwargs", "it is not searched")],
)
def test_an_argument_that_cannot_be_searched_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"search: SDAC cannot be searched over {name!r}; {message}"):
        search_space(SDAC, "mine.yml", {name: {"choices": [1, 2]}})


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_settings_of_a_training_bring_their_own_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER):
        for algo in ("sdac", "sac"):
            monkeypatch.setitem(table, algo, table[algo])
    before = HYPERPARAMS_SAMPLER["sac"]
    plain = write(tmp_path, "default: {policy: MlpPolicy, n_timesteps: 10}\n")
    use_search_space("sac", plain)
    assert HYPERPARAMS_SAMPLER["sac"] is before  # that of rl-zoo3
    own = write(tmp_path, "default: {policy: MlpPolicy, n_timesteps: 10}\nsearch: {tau: {choices: [0.1]}}\n")
    for algo in ("sdac", "sac"):
        use_search_space(algo, own)
        assert set(drawn(algo)) == {"one_minus_gamma", "batch_size_pow", "learning_rate", "tau"}


def test_search_is_no_environment(tmp_path: Path) -> None:
    config = write(tmp_path, "search: {tau: {choices: [0.1]}}\n")
    with pytest.raises(ValueError, match="has no entry 'search' or 'default'; add one"):
        choose_entry(config, read_entries(config), ["search", "default"])


def test_a_wrong_search_is_found_when_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine.yml, search: tau: 0.1 must be {low"):
        read_entries(write(tmp_path, "default: {policy: MlpPolicy}\nsearch: {tau: 0.1}\n"))
    python = tmp_path / "mine.py"
    python.write_text("hyperparams = {'default': {}, 'search': {'tau': {'low': 1, 'high': 0}}}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="low=1 must be below high=0"):
        read_entries(str(python))


def test_only_a_trial_reads_the_file_again(tmp_path: Path) -> None:
    """The spaces of all methods are registered when a training begins, and eleven files would take a second."""
    from zoo.training.options.search_space import make_sampler

    trial = optuna.create_study().ask()
    calls: list[int] = []

    def space() -> list[Any]:
        calls.append(1)
        return search_space(DPMD, "mine.yml", {})

    sampler = make_sampler(space)
    assert not calls
    sampler(trial, 1, 1, {})
    assert calls == [1]
