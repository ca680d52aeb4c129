"""How algorithms are saved and loaded: without names of modules of ours, and from files of earlier versions."""

import io
import zipfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, open_path
from stable_baselines3.common.type_aliases import GymEnv
from typing_extensions import Self, override

from sb3_diffusion.checkpoints.agents import description_members, write_file
from sb3_diffusion.checkpoints.old_names import old_modules, up_to_date
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.policies.actor_critic import ActorCritic


@contextmanager
def replaced(model: BaseAlgorithm, attributes: Mapping[str, Any]) -> Iterator[None]:
    """
    Within it, attributes have other values.

    :param model: An algorithm
    :param attributes: Name -> value
    """
    before = {name: getattr(model, name) for name in attributes}
    vars(model).update(attributes)
    try:
        yield
    finally:
        vars(model).update(before)


class SavedAlgorithm(BaseAlgorithm):
    """
    Saves what the parts of an algorithm say, and beside it a description that is read without running anything. A base class
    of :class:`~sb3_diffusion.core.algorithm.DiffusionAlgorithm`.
    """

    policy: ActorCritic
    policy_class: Any

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """What is trained, in the order of the update."""

    # -- names in the place of classes -------------------------------------------------------------------------------

    def _policy_name(self) -> str | None:
        """What the policy's class is called, None for one of the user's own."""
        return next((n for n in self.policy_aliases if self._get_policy_from_name(n) is self.policy_class), None)

    def _named_classes(self) -> dict[str, Any]:
        """Attributes that are classes of ours, by name: files would point to our modules otherwise."""
        name = self._policy_name()
        return {} if name is None else {"policy_class": name}

    def _resolve_names(self) -> None:
        """Undo :meth:`_named_classes` after loading."""
        if isinstance(self.policy_class, str):
            self.policy_class = self._get_policy_from_name(self.policy_class)

    # -- files -------------------------------------------------------------------------------------------------------

    def _note_evaluation_noise(self) -> None:
        """It may be changed on the policy, which is built anew from these arguments."""
        noise, built = self.policy.evaluation_noise, self.policy.constructor_arguments["evaluation_noise"]
        if noise != self.policy_kwargs.get("evaluation_noise", built):
            self.policy_kwargs = {**self.policy_kwargs, "evaluation_noise": noise}

    def save(
        self, path: str | Path | io.BufferedIOBase, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """
        Save the model for :meth:`load`, and for :func:`~sb3_diffusion.checkpoints.agents.load_agent`, which runs nothing that
        is in the file.

        :param path: The file, or an open binary file
        :param exclude: Attributes to leave out, in addition to the default ones
        :param include: Attributes to keep that would be left out otherwise
        """
        self._note_evaluation_noise()
        content = io.BytesIO()
        with replaced(self, self._named_classes()):
            super().save(content, exclude, include)
        with zipfile.ZipFile(content, "a") as archive:
            for name, data in description_members(self).items():
                archive.writestr(name, data)
        if isinstance(path, str | Path):
            write_file(path, content.getvalue())
        else:
            open_path(path, "w").write(content.getvalue())

    @classmethod
    @override
    def load(
        cls,
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """
        Load a model as Stable-Baselines3 does, also from files of earlier versions. This runs code that is in the file;
        :func:`~sb3_diffusion.checkpoints.agents.load_agent` does not.

        :param path: The file, or an open binary file
        :param env: Environment to go on with, ``None`` for prediction only
        :param device: Device of the networks
        :param custom_objects: Replacements of attributes that cannot be unpickled
        :param print_system_info: Whether to print the versions with which the file was written
        :param force_reset: Whether to reset the environment before training goes on
        :param kwargs: Attributes to change
        :return: The model
        """
        with old_modules():
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    @override
    def set_parameters(
        self, load_path_or_dict: str | dict[str, Any], exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load weights and the states of optimizers, see Stable-Baselines3's ``BaseAlgorithm.set_parameters``.

        :param load_path_or_dict: A saved model, or what :meth:`get_parameters` returns
        :param exact_match: Whether everything has to be there
        :param device: Where to load it
        """
        if not isinstance(load_path_or_dict, dict):
            _, load_path_or_dict, _ = load_from_zip_file(load_path_or_dict, device=device, load_data=False)
        super().set_parameters(up_to_date(load_path_or_dict, self._get_torch_save_params()[0]), exact_match, device)

    @override
    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "randomness", "_run_update", "_own_lr_schedules"]

    @override
    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        learned = [f"policy.multipliers.{name}.optimizer" for name in self.policy.multipliers]
        return ["policy", *(f"{self._path_of(part)}.optimizer" for part in self.parts()), *learned], []

    def _path_of(self, part: Part) -> str:
        """Where a part's network is found, from the model on; actor and critic have aliases there."""
        name = next(name for name, network in self.policy.trained.items() if network is part.network)
        return name if name in ("actor", "critic") else f"policy.{name}"
