"""The replay buffer of an algorithm: where both know the same fact, the algorithm owns it."""

from typing import Any

from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
from typing_extensions import override

from sb3_diffusion.checkpoints.old_names import old_modules
from sb3_diffusion.core.algorithm import DiffusionAlgorithm
from sb3_diffusion.data.replay import BUFFERS, TensorReplayBuffer, check_memory_optimization, default_buffer_class
from sb3_diffusion.names import choice

N_STEP_BUFFERS = (TensorReplayBuffer, NStepReplayBuffer)


class ModelBuffer:
    """
    The attribute ``replay_buffer`` of an algorithm.

    A buffer that does not fit is refused when it is put there (``load_replay_buffer`` does). What is read from there counts
    its returns with the algorithm's ``gamma`` and number of steps, also after one of them has been changed.
    """

    def __get__(self, model: OffPolicyAlgorithm | None, owner: type | None = None) -> Any:
        if model is None:
            return self
        try:
            buffer = vars(model)["replay_buffer"]
        except KeyError:
            raise AttributeError(f"{type(model).__name__} has no replay_buffer yet.") from None
        if isinstance(buffer, N_STEP_BUFFERS):
            buffer.gamma = model.gamma
            n_steps = _n_steps(model)
            if n_steps is not None and n_steps != buffer.n_steps:
                if buffer.optimize_memory_usage:
                    check_memory_optimization(buffer.handle_timeout_termination, buffer.observation_space, n_steps)
                buffer.n_steps = n_steps
        return buffer

    def __set__(self, model: OffPolicyAlgorithm, buffer: Any) -> None:
        if isinstance(buffer, ReplayBuffer):
            _check_fits(model, buffer)
        vars(model)["replay_buffer"] = buffer


class OwnsBuffer(DiffusionAlgorithm, OffPolicyAlgorithm):
    """An off-policy algorithm, and what it has to do with its replay buffer."""

    replay_buffer = ModelBuffer()  # type: ignore[assignment]

    def _buffer_attributes(self) -> dict[str, Any]:
        """What the attributes are to be while Stable-Baselines3 builds the buffer."""
        buffer_class = self.replay_buffer_class or default_buffer_class(self.observation_space, self.n_steps)
        check_buffer_kwargs(self, buffer_class)
        attributes: dict[str, Any] = {"replay_buffer_class": buffer_class}
        if issubclass(buffer_class, TensorReplayBuffer):
            # it tells n_steps only to the buffer that it chooses itself, and warns about all others
            options = {"n_steps": self.n_steps, "gamma": self.gamma, **self.replay_buffer_kwargs}
            attributes |= {"replay_buffer_kwargs": options, "n_steps": 1}
        return attributes

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer, see Stable-Baselines3's ``OffPolicyAlgorithm.load_replay_buffer``; those of earlier versions too.

        :param path: The file
        :param truncate_last_traj: See there
        """
        with old_modules():
            super().load_replay_buffer(path, truncate_last_traj)

    @override
    def _named_classes(self) -> dict[str, Any]:
        name = next((name for name, buffer_class in BUFFERS.items() if buffer_class is self.replay_buffer_class), None)
        return {**super()._named_classes(), **({} if name is None else {"replay_buffer_class": name})}

    @override
    def _resolve_names(self) -> None:
        super()._resolve_names()
        if isinstance(self.replay_buffer_class, str):
            self.replay_buffer_class = BUFFERS[choice("replay_buffer_class", self.replay_buffer_class, BUFFERS)]


def check_buffer_kwargs(model: OffPolicyAlgorithm, buffer_class: type[ReplayBuffer]) -> None:
    """
    Refuse arguments of the buffer that say something else than those of the algorithm.

    :param model: An algorithm that has its arguments, and no buffer yet
    :param buffer_class: Class that its buffer will have
    :raises ValueError: Naming both
    """
    if not issubclass(buffer_class, N_STEP_BUFFERS):
        return
    # n_steps=1 is the default: Stable-Baselines3 wants the number of steps of a chosen class to be said to the buffer alone
    for name, silent in (("gamma", None), ("n_steps", 1)):
        own = getattr(model, name)
        given = model.replay_buffer_kwargs.get(name, own)
        if given != own and own != silent:
            raise ValueError(
                f"replay_buffer_kwargs has {name}={given}, {type(model).__name__} itself {name}={own}; "
                f"leave it out of replay_buffer_kwargs and pass {name}={given} to {type(model).__name__} if that is meant."
            )


def check_environments(model: OffPolicyAlgorithm) -> None:
    """
    Refuse to collect into a buffer of another number of environments.

    :param model: An algorithm that is about to collect transitions
    :raises ValueError: Naming both numbers
    """
    buffer = model.replay_buffer
    if buffer is not None and buffer.n_envs != model.n_envs:
        raise ValueError(
            f"The replay buffer keeps n_envs={buffer.n_envs} environments side by side, the model has {model.n_envs}; "
            f"make {buffer.n_envs}, or learn from what is in the buffer with model.train()."
        )


def _n_steps(model: OffPolicyAlgorithm) -> int | None:
    """Steps of the returns, ``None`` where a class of somebody else's decides."""
    if "n_steps" in model.replay_buffer_kwargs:
        return int(model.replay_buffer_kwargs["n_steps"])
    return model.n_steps if issubclass(model.replay_buffer_class or TensorReplayBuffer, TensorReplayBuffer) else None


def _check_fits(model: OffPolicyAlgorithm, buffer: ReplayBuffer) -> None:
    facts: list[tuple[str, Any, Any]] = [
        ("the observation shape", buffer.obs_shape, get_obs_shape(model.observation_space)),
        ("the size of the action", buffer.action_dim, get_action_dim(model.action_space)),
    ]
    previous = vars(model).get("replay_buffer")
    if isinstance(previous, ReplayBuffer):  # what a class makes of its arguments is left to the class
        name = "handle_timeout_termination"
        expected = model.replay_buffer_kwargs.get(name, getattr(previous, name, True))
        facts.append((name, getattr(buffer, name, expected), expected))
        facts.append(("optimize_memory_usage", buffer.optimize_memory_usage, model.optimize_memory_usage))
    n_steps = _n_steps(model)
    if n_steps is not None and n_steps > 1 and not isinstance(buffer, N_STEP_BUFFERS):
        facts.append(("n_steps", 1, n_steps))
    for what, theirs, ours in facts:
        if theirs != ours:
            raise ValueError(
                f"This {type(buffer).__name__} does not fit the model: {what} is {theirs} there and {ours} here; "
                "load it into a model with the spaces and arguments of the one that filled it."
            )
