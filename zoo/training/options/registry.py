"""Tell rl-zoo3 about the algorithms of ``sb3_diffusion``, and check names before anything slow is imported."""

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from sb3_diffusion.names import suggest
from sb3_diffusion.taxonomy import BASELINES, available_methods, get_method

from .command_line import CommandParser
from .errors import fail

if TYPE_CHECKING:  # this module is imported to check names, and these two take seconds
    import optuna

DMC_PREFIX = "dm_control/"
CONTRIB = ("ars", "crossq", "qrdqn", "tqc", "trpo", "ppo_lstm")
"""The algorithms of sb3-contrib that rl-zoo3 knows."""

ENVIRONMENT_PACKAGES = (
    *("pybullet_envs_gymnasium", "ale_py", "highway_env", "custom_envs", "gym_donkeycar", "panda_gym"),
    *("rocket_lander_gym", "minigrid"),
)
"""Packages that rl-zoo3 imports if they are there; they register environments."""


def register_algorithms() -> None:
    """Add every available method of the taxonomy, and its search space, to the tables of rl-zoo3."""
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    samplers: dict[str, Any] = HYPERPARAMS_SAMPLER
    converters: dict[str, Any] = HYPERPARAMS_CONVERTER
    for method in available_methods():
        ALGOS[method.zoo_name] = method.load()
        samplers[method.zoo_name] = _make_sampler(method.zoo_name)
        converters[method.zoo_name] = convert_params


def convert_params(sampled: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters of an Optuna trial into constructor arguments.

    :param sampled: Parameters as stored in the study
    """
    params = dict(sampled)
    params["gamma"] = 1 - params.pop("one_minus_gamma")
    params["batch_size"] = 2 ** params.pop("batch_size_pow")
    return params


def _sample_off_policy(trial: "optuna.Trial") -> dict[str, Any]:
    return {
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-3, 0.05, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 7, 10),
        "tau": trial.suggest_float("tau", 1e-3, 0.05, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 3e-5, 1e-3, log=True),
    }


def _sample_sdac(trial: "optuna.Trial") -> dict[str, Any]:
    return {
        "temperature": trial.suggest_float("temperature", 5e-3, 5.0, log=True),
        "n_particles": trial.suggest_categorical("n_particles", [16, 64, 256]),
    }


def _sample_maxentdp(trial: "optuna.Trial") -> dict[str, Any]:
    return {
        "temperature": trial.suggest_float("temperature", 5e-3, 1.0, log=True),
        "n_particles": trial.suggest_categorical("n_particles", [16, 64, 256]),
        "n_likelihood_steps": trial.suggest_categorical("n_likelihood_steps", [10, 20]),
        "n_likelihood_samples": trial.suggest_categorical("n_likelihood_samples", [8, 16, 50]),
    }


def _sample_qvpo(trial: "optuna.Trial") -> dict[str, Any]:
    return {
        "n_particles": trial.suggest_categorical("n_particles", [8, 16, 64]),
        "ent_coef": trial.suggest_float("ent_coef", 1e-3, 0.3, log=True),
        "n_target_candidates": trial.suggest_categorical("n_target_candidates", [1, 2, 4]),
        "n_behavior_candidates": trial.suggest_categorical("n_behavior_candidates", [1, 2, 4]),
    }


def _sample_dacer(trial: "optuna.Trial") -> dict[str, Any]:
    return {
        "reward_scale": trial.suggest_float("reward_scale", 0.05, 1.0, log=True),
        "noise_scale": trial.suggest_float("noise_scale", 0.03, 0.3, log=True),
        "alpha_update_interval": trial.suggest_categorical("alpha_update_interval", [500, 2000, 10_000]),
        "policy_delay": trial.suggest_int("policy_delay", 1, 2),
    }


def _sample_dacerv2(trial: "optuna.Trial") -> dict[str, Any]:
    return _sample_dacer(trial) | {"field_weight": trial.suggest_float("field_weight", 0.003, 3.0, log=True)}


def _sample_dime(trial: "optuna.Trial") -> dict[str, Any]:
    return {
        "v_max": trial.suggest_float("v_max", 10.0, 2000.0, log=True),
        "initial_alpha": trial.suggest_float("initial_alpha", 0.01, 1.0, log=True),
        "policy_delay": trial.suggest_int("policy_delay", 1, 3),
        "target_critics": trial.suggest_categorical("target_critics", [False, True]),
    }


def _sample_qsm(trial: "optuna.Trial") -> dict[str, Any]:
    return {
        "temperature": trial.suggest_float("temperature", 0.01, 1.0, log=True),
        "exploration_noise": trial.suggest_float("exploration_noise", 0.0, 0.3),
        "target_action_noise": trial.suggest_float("target_action_noise", 0.0, 0.2),
    }


def _sample_idem(trial: "optuna.Trial") -> dict[str, Any]:
    return {
        "temperature": trial.suggest_float("temperature", 0.01, 1.0, log=True),
        "n_particles": trial.suggest_categorical("n_particles", [16, 64, 256]),
        "exploration_noise": trial.suggest_float("exploration_noise", 0.0, 0.3),
    }


def _sample_dps(trial: "optuna.Trial") -> dict[str, Any]:
    return _sample_idem(trial) | {"proposal": trial.suggest_categorical("proposal", ["normal_clip", "truncated"])}


def _sample_dpmd(trial: "optuna.Trial") -> dict[str, Any]:
    return {
        "actor_learning_rate": trial.suggest_float("actor_learning_rate", 3e-5, 1e-3, log=True),
        "n_particles": trial.suggest_categorical("n_particles", [16, 32, 64]),
        "weights": trial.suggest_categorical("weights", ["exp", "linear"]),
        # below log(16), the largest divergence that the smallest number of particles allows
        "target_kl": trial.suggest_float("target_kl", 0.5, 2.7),
        "particle_noise": trial.suggest_float("particle_noise", 0.05, 0.3),
        "refresh_interval": trial.suggest_categorical("refresh_interval", [250, 1000, 4000]),
    }


def _sample_fpmd(trial: "optuna.Trial") -> dict[str, Any]:
    return {**_sample_dpmd(trial), "variant": trial.suggest_categorical("variant", ["rectified", "meanflow"])}


# Search space of what is particular to a method; the rest is common to all.
_SAMPLERS: dict[str, Callable[["optuna.Trial"], dict[str, Any]]] = {
    "sdac": _sample_sdac,
    "maxentdp": _sample_maxentdp,
    "qvpo": _sample_qvpo,
    "dacer": _sample_dacer,
    "dacerv2": _sample_dacerv2,
    "dime": _sample_dime,
    "qsm": _sample_qsm,
    "idem": _sample_idem,
    "dps": _sample_dps,
    "dpmd": _sample_dpmd,
    "fpmd": _sample_fpmd,
}


def _make_sampler(name: str) -> Callable[["optuna.Trial", int, int, dict], dict[str, Any]]:
    sample_own = _SAMPLERS.get(name, lambda trial: {})

    def sample(trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict) -> dict[str, Any]:
        return convert_params(_sample_off_policy(trial) | sample_own(trial))

    return sample


def algorithm_names() -> list[str]:
    """What ``--algo`` may be: the available methods, the algorithms of Stable-Baselines3 and those of sb3-contrib."""
    return [*(method.zoo_name for method in available_methods()), *BASELINES, *CONTRIB]


def check_algorithm(name: str) -> None:
    """
    :param name: Value of ``--algo``
    :raises ValueError: If there is no such algorithm; the message is one line with a suggestion
    """
    names = algorithm_names()
    if name in names:
        return
    try:
        method = get_method(name)
    except ValueError:
        raise ValueError(f"unknown algorithm {name!r}; {suggest(name, names)}") from None
    if method.available:
        raise ValueError(f"unknown algorithm {name!r}; did you mean {method.zoo_name}?")
    available = ", ".join(other.zoo_name for other in available_methods())
    raise ValueError(f"{method.name} is part of the taxonomy but not available yet; available are: {available}.")


def check_environment(env_id: str) -> None:
    """
    Register the DeepMind Control tasks if the id asks for one, and check that the environment exists.

    :param env_id: Value of ``--env``
    :raises ValueError: If it does not; the message is one line with a suggestion
    """
    register_environments(env_id)
    newest = _newest_version(env_id)
    if env_id not in gym.registry:
        if ":" in env_id:
            package, _, name = env_id.partition(":")
            raise ValueError(f"unknown environment {env_id!r}; write --env {name} --gym-packages {package}.")
        listed = "gymnasium.pprint_registry() lists what is registered."
        hint = f"did you mean {newest}?" if newest else suggest(env_id, gym.registry, listed)
        raise ValueError(f"unknown environment {env_id!r}; {hint}")
    entry = gym.registry[env_id].entry_point
    # Gymnasium keeps the ids of versions that it has given away, with a function that raises
    if callable(entry) and getattr(entry, "__module__", "") == gym.envs.__name__:
        raise ValueError(f"environment {env_id!r} is no longer part of Gymnasium; take {newest}.")


def register_environments(env_id: str) -> None:
    """
    Import what registers an environment that Gymnasium does not know by itself.

    :param env_id: Value of ``--env``
    """
    if env_id in gym.registry:
        return
    if env_id.startswith(("dm", "toy")):  # with a typo in the prefix too, to have something to suggest
        from sb3_diffusion.envs import register_dmc  # registers the toys

        if env_id.startswith(DMC_PREFIX) or not env_id.startswith("toy"):
            register_dmc()
    if env_id not in gym.registry and ("NoVel" in env_id or any(map(importlib.util.find_spec, ENVIRONMENT_PACKAGES))):
        importlib.import_module("rl_zoo3.import_envs")


def _newest_version(env_id: str) -> str | None:
    """The highest version that is registered under the same name."""
    name, _, _ = env_id.rpartition("-v")
    versions = [spec for spec in gym.registry.values() if spec.name == name.rpartition("/")[2] and spec.version is not None]
    same = [spec for spec in versions if spec.id.rpartition("-v")[0] == name]
    return max(same, key=lambda spec: spec.version or 0).id if same else None


def check_names(algo: str | None, env_id: str | None, gym_packages: Sequence[str]) -> None:
    """
    Check what names something, and import the packages that register environments.

    :param algo: Value of ``--algo``
    :param env_id: Value of ``--env``
    :param gym_packages: Values of ``--gym-packages``
    :raises ValueError: If one of them does not exist
    """
    if algo is not None:
        check_algorithm(algo)
    import_packages(gym_packages)
    if env_id is not None:
        check_environment(env_id)


def import_packages(names: Iterable[str]) -> None:
    """
    :param names: Values of ``--gym-packages``
    :raises ValueError: If one cannot be imported
    """
    name = ""
    try:
        for name in names:
            importlib.import_module(name)
    except Exception as error:  # whatever a package does while it is imported
        raise ValueError(f"--gym-packages {name}: {type(error).__name__}: {error}") from error


def check_command_line(prog: str, argv: Sequence[str]) -> None:
    """
    Stop with one line and exit status 2 if ``--algo`` or ``--env`` name nothing that exists.

    :param prog: Name of the program, for the message
    :param argv: Command line without the program; options other than the names are left to the program's own parser
    """
    parser = CommandParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--algo")
    parser.add_argument("--env")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    args, _ = parser.parse_known_args(argv)
    try:
        check_names(args.algo, args.env, args.gym_packages)
    except (ValueError, ImportError) as error:
        fail(prog, str(error))
