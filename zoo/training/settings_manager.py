"""Where the settings of a training come from: our files, a trial of a search, the command line, a run that goes on."""

from collections import OrderedDict
from pprint import pprint
from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from typing_extensions import override

from sb3_diffusion.envs.tensor.adapters.isaaclab_names import isaac_names_agree

from .environment_manager import EnvironmentManager
from .options import settings
from .options.errors import fail
from .options.hyperparameters import SCHEDULES
from .options.registry import DMC_ACTION_REPEAT, DMC_PREFIX, entries_for, use_search_space
from .options.settings import Settings
from .runs.resume import Run
from .tuning.study import load_trial

DMC_FAMILY: dict[str, Any] = {"env_wrapper": {"sb3_diffusion.envs.dmc.wrap_dmc": {"action_repeat": DMC_ACTION_REPEAT}}}


class SettingsManager(EnvironmentManager):
    """rl-zoo3's manager with settings of which each has an origin. Arguments: see there."""

    run: Run | None
    options: Settings
    settings: Settings
    dataset_name: str
    asked_n_envs: int | None
    """Value of ``--n-envs``."""

    @override
    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.run is not None:
            print(f"Continuing {self.run.folder} with its own settings")
            stored = settings.with_origin(self.run.hyperparams, f"settings of {self.run.folder}")
        else:
            print(f"Loading hyperparameters from: {self.config}")
            stored = self._own_settings()
        self.settings = stored | self._from_options()
        hyperparams = settings.values(stored)
        if self.env_kwargs and "env_kwargs" in hyperparams:
            hyperparams["env_kwargs"] = self.env_kwargs
        saved = OrderedDict(sorted(hyperparams.items()))
        if self.run is None:
            print("Settings for this environment (those that a search varies will be overwritten):")
            pprint(saved)
        return hyperparams, saved

    def _own_settings(self) -> Settings:
        """Settings of the file, overwritten by those of a trial and of the command line."""
        entries = settings.read_entries(self.config)
        if self.optimize_hyperparameters or self.trial_id is not None:
            use_search_space(self.algo, self.config)
        named = entries_for(self.dataset_name, self.env_name.gym_id)
        if self.speaks_tensors:
            named += [name for name in entries if isaac_names_agree(name, self.env_name.gym_id)] + [settings.TENSOR_FAMILY]
        candidates = [*named, "atari" if self._is_atari else "default"]
        chosen = settings.choose_entry(self.config, entries, candidates)
        if self.env_name.gym_id.startswith(DMC_PREFIX) and self.env_name.gym_id not in entries:
            chosen |= self._dmc_family(entries)
        if self.trial_id is not None:
            chosen |= settings.with_origin(self._trial_settings(self.trial_id), f"trial {self.trial_id} of {self.study_name}")
        algorithm = ALGOS[self.algo]
        own = settings.with_origin(self.custom_hyperparams or {}, "-params")
        own |= settings.with_origin({} if self.asked_n_envs is None else {"n_envs": self.asked_n_envs}, "--n-envs")
        return settings.overwrite(settings.expand_preset(algorithm, chosen), settings.expand_preset(algorithm, own))

    def _from_options(self) -> Settings:
        """Settings with an option of their own, which a run stores with its command line."""
        steps = settings.with_origin({"n_timesteps": self.n_timesteps} if self.n_timesteps > 0 else {}, "-n")
        return steps | settings.with_origin({"env_kwargs": self.env_kwargs} if self.env_kwargs else {}, "--env-kwargs")

    def _dmc_family(self, entries: dict[str, Any]) -> Settings:
        """What a task of the suite without an entry of its own adds to the default: the ``dm_control`` entry, if any."""
        default = settings.with_origin(DMC_FAMILY, "default of the zoo for DeepMind Control")
        own = settings.choose_entry(self.config, entries, [settings.FAMILY]) if settings.FAMILY in entries else {}
        return default | own

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        linear = {key: _linear_schedule(key, hyperparams[key]) for key in SCHEDULES if isinstance(hyperparams.get(key), str)}
        others = {key: value for key, value in hyperparams.items() if key not in linear}
        # a range of values may be none at all, for which rl-zoo3 has no schedule
        values = {"clip_range_vf": others.pop("clip_range_vf")} if "clip_range_vf" in others else {}
        # rl-zoo3 would build its own schedule class, which a saved agent could not be loaded without
        return ExperimentManager._preprocess_schedules(others) | values | linear

    def effective_settings(self, model: BaseAlgorithm) -> dict[str, Settings]:
        """
        :param model: The agent that was built
        :return: Section -> every setting with its origin
        """
        return settings.complete(model, self.settings, self.options, self.trained_agent)

    def _trial_settings(self, trial_id: int) -> dict[str, Any]:
        if self.storage is None or self.study_name is None:
            fail("train.py", f"--trial-id {trial_id} needs --storage and --study-name, which say whose trial it is")
        try:
            params = load_trial(self.storage, self.study_name, trial_id, self.algo)
        except ValueError as error:
            fail("train.py", str(error))
        converted: dict[str, Any] = HYPERPARAMS_CONVERTER[self.algo](params)
        return converted


def _linear_schedule(key: str, text: str) -> LinearSchedule:
    prefix, _, number = text.partition("_")
    try:
        initial_value = float(number)
    except ValueError:
        prefix = ""
    if prefix != "lin":
        raise ValueError(f"{key}={text!r} must be a number or 'lin_<initial value>', for example lin_3e-4.")
    return LinearSchedule(initial_value, 0.0, 1.0)
