"""
RL Zoo's published agents of the MuJoCo robots, as functions from observations to actions.

Nothing of them is run: weights are read as tensors. The statistics of those that normalise their observations are published
as a pickle only; it is read by a reader that builds arrays and numbers, and puts an empty object for everything else.
"""

import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch as th
from huggingface_hub.errors import EntryNotFoundError

ORGANIZATION = "sb3"
VERSION = "v3"
ALGOS = ("sac", "ppo", "trpo", "a2c", "ars", "random")
"""Who acts in the data, ``random`` among them; its place is its number in the files."""

RECTIFIED = {("ppo", "Hopper"), ("ppo", "HalfCheetah")}
"""Agents whose settings say ReLU where the other on-policy agents have tanh."""

NOISE = 0.1
"""Standard deviation of what is added to the actions of ARS, which has no noise of its own."""

EPISODE = 1000


def fetch(algo: str, robot: str, folder: Path | None) -> tuple[Path, Path | None]:
    """
    :param algo: Algorithm
    :param robot: Robot, such as ``"Hopper"``
    :param folder: Where the agents are, ``<algo>-<robot>-v3/`` each; by default the Hub
    :return: Archive of the agent, and the file of its statistics if it has them
    :raises FileNotFoundError: If the folder does not have it
    """
    name = f"{algo}-{robot}-{VERSION}"
    if folder is not None:
        archive, statistics = folder / name / f"{name}.zip", folder / name / "vec_normalize.pkl"
        if not archive.is_file():
            raise FileNotFoundError(f"There is no {archive}; download {ORGANIZATION}/{name} there, or leave --agents out.")
        return archive, statistics if statistics.is_file() else None
    repository = f"{ORGANIZATION}/{name}"
    archive = Path(huggingface_hub.hf_hub_download(repository, f"{name}.zip"))
    try:
        return archive, Path(huggingface_hub.hf_hub_download(repository, "vec_normalize.pkl"))
    except EntryNotFoundError:
        return archive, None


@dataclass(frozen=True)
class Statistics:
    """
    How an agent normalises what it sees.

    :param mean: Mean of the observations
    :param deviation: Their standard deviation
    :param clip: Largest value afterwards
    """

    mean: np.ndarray
    deviation: np.ndarray
    clip: float


class _Empty:
    """Stands for every object that is not built."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


class _ArraysOnly(pickle.Unpickler):
    """A reader of pickles that can build arrays, numbers, and objects of one empty class."""

    _ARRAYS = {(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")} | {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in self._ARRAYS else _Empty


def read_statistics(path: Path) -> Statistics:
    """
    :param path: ``vec_normalize.pkl`` of an agent
    :return: Its statistics
    :raises ValueError: If they are not there
    """
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file).load()
        mean, variance = (np.asarray(getattr(found.obs_rms, name), np.float64) for name in ("mean", "var"))
        return Statistics(mean, np.sqrt(variance + float(found.epsilon)), float(found.clip_obs))
    except Exception as error:  # whatever a broken pickle leads to
        raise ValueError(f"{path} holds no statistics of VecNormalize ({type(error).__name__}: {error}).") from error


class Agent:
    """
    A published agent that acts as it explored in training.

    :param algo: Algorithm
    :param robot: Robot
    :param archive: Archive of the agent
    :param statistics: How it normalises what it sees
    """

    def __init__(self, algo: str, robot: str, archive: Path, statistics: Statistics | None):
        self.algo, self.number, self._statistics = algo, ALGOS.index(algo), statistics
        with zipfile.ZipFile(archive) as file:
            content = file.read("policy.pth")
        weights = th.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        self._weights = {name: tensor.double().numpy() for name, tensor in weights.items()}
        self._rectified = algo == "sac" or (algo, robot) in RECTIFIED
        # a linear policy is one layer; later releases of its library put it into a sequence
        self._line = "action_net.0" if "action_net.0.weight" in self._weights else "action_net"
        first = {"sac": "actor.latent_pi.0", "ars": self._line}.get(algo, "mlp_extractor.policy_net.0")
        self._n_inputs = self._weights[f"{first}.weight"].shape[1]

    def act(self, observation: np.ndarray, step: int, generator: np.random.Generator, noise: float = 1.0) -> np.ndarray:
        """
        :param observation: What the robot sees
        :param step: Number of the step within the episode
        :param generator: Source of the noise
        :param noise: Factor of the noise; 0 gives the deterministic action
        :return: The action, which may lie outside the box
        """
        # one agent was trained with the share of the episode that is left as a further number
        inputs = np.append(observation, 1.0 - step / EPISODE) if self._n_inputs > len(observation) else observation
        if self._statistics is not None:
            inputs = (inputs - self._statistics.mean) / self._statistics.deviation
            inputs = np.clip(inputs, -self._statistics.clip, self._statistics.clip)
        if self.algo == "ars":
            mean = self._linear(self._line, inputs)
            return mean + NOISE * noise * generator.standard_normal(len(mean))
        if self.algo == "sac":
            hidden = self._hidden("actor.latent_pi", inputs)
            mean, log_std = self._linear("actor.mu", hidden), np.clip(self._linear("actor.log_std", hidden), -20.0, 2.0)
            return np.tanh(mean + np.exp(log_std) * noise * generator.standard_normal(len(mean)))
        mean = self._linear("action_net", self._hidden("mlp_extractor.policy_net", inputs))
        return mean + np.exp(self._weights["log_std"]) * noise * generator.standard_normal(len(mean))

    def _linear(self, name: str, inputs: np.ndarray) -> np.ndarray:
        outputs = self._weights[f"{name}.weight"] @ inputs
        return outputs + self._weights[f"{name}.bias"] if f"{name}.bias" in self._weights else outputs

    def _hidden(self, name: str, inputs: np.ndarray) -> np.ndarray:
        for layer in (0, 2):
            inputs = self._linear(f"{name}.{layer}", inputs)
            inputs = np.maximum(inputs, 0.0) if self._rectified else np.tanh(inputs)
        return inputs


class Random:
    """Actions drawn evenly from the box."""

    algo, number = "random", ALGOS.index("random")

    def __init__(self, low: np.ndarray, high: np.ndarray):
        self._low, self._high = low, high

    def act(self, observation: np.ndarray, step: int, generator: np.random.Generator, noise: float = 1.0) -> np.ndarray:
        """
        :param observation: Not used
        :param step: Not used
        :param generator: Source of the action
        :param noise: Not used
        """
        return generator.uniform(self._low, self._high)


class Switching:
    """
    Agents that hand over to one another, drawn evenly.

    :param agents: The agents
    :param chance: That of handing over at a step
    """

    algo = "switching"

    def __init__(self, agents: list[Agent], chance: float = 1 / 20):
        self._agents, self._chance, self._turn = agents, chance, 0

    @property
    def number(self) -> int:
        """Number of the agent whose turn it is."""
        return self._agents[self._turn].number

    def act(self, observation: np.ndarray, step: int, generator: np.random.Generator, noise: float = 1.0) -> np.ndarray:
        """
        :param observation: What the robot sees
        :param step: Number of the step within the episode
        :param generator: Source of the noise, and of the turns
        :param noise: Factor of the noise
        """
        if step == 0 or generator.random() < self._chance:
            self._turn = int(generator.integers(len(self._agents)))
        return self._agents[self._turn].act(observation, step, generator, noise)
