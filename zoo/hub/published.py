"""
Agents in the layout of the Hub: downloaded ones, and those of ``zoo/pretrained``.

Their files may come from a stranger. All that is read here is plain data: the archive through ``load_agent``, which unpickles
nothing, and settings through a safe YAML loader. Of the settings only what a list here allows is acted upon. The other route,
Stable-Baselines3's own pickles, is taken only when the user says so.
"""

import math
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName, ModelName  # a module of sb3-team-hf-integration, which rl-zoo3 brings
from rl_zoo3.utils import ALGOS, create_test_env
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_diffusion import load_agent, load_normalization
from sb3_diffusion.checkpoints.agents import why_unsafe
from sb3_diffusion.printable import printable, quoted
from sb3_diffusion.tensor_names import is_tensor_env

from ..training.environments import tensor
from ..training.runs.saved_agents import SavedAgent
from ..training.runs.started_with import original
from ..training.runs.text_files import read_yaml, saved_env_kwargs
from ..training.runs.trust import UNKNOWN, is_own

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
MAX_STACK = 100
# A wrapper is code that a settings file names. These do nothing but convert observations and actions.
SAFE_WRAPPERS = frozenset(
    {
        "sb3_diffusion.envs.dmc.wrap_dmc",
        "gymnasium.wrappers.ClipAction",
        "gymnasium.wrappers.FlattenObservation",
        "gymnasium.wrappers.RescaleAction",
        "gymnasium.wrappers.TimeAwareObservation",
        "rl_zoo3.utils.flatten_dict_observations",
        "rl_zoo3.wrappers.HistoryWrapper",
        "rl_zoo3.wrappers.MaskVelocityWrapper",
        "rl_zoo3.wrappers.TimeFeatureWrapper",
    }
)


def agent_name(algo: str, env_id: str) -> str:
    """
    Name of a repository and of the archive in it.

    :param algo: Algorithm
    :param env_id: Environment
    """
    return str(ModelName(algo, EnvironmentName(env_id)))


class PublishedAgent:
    """
    A folder in the layout of the Hub.

    :param folder: The folder
    :param env_id: Environment that the user asked for
    :param algo: Algorithm; by default what the folder's only archive is named after
    :param archive: The agent, if it lies elsewhere: one of a run, whose settings are in the folder
    :param trust: Take the pickle route, and act upon all settings
    """

    def __init__(
        self, folder: Path, env_id: str, algo: str | None = None, *, archive: Path | None = None, trust: bool = False
    ):
        self.folder, self.env_id, self.trust = Path(folder), env_id, trust
        self.algo = algo or self._algorithm()
        self.archive = archive or self.folder / f"{agent_name(self.algo, env_id)}.zip"
        if not self.archive.is_file():
            raise ValueError(f"{self.folder} contains no {self.archive.name}: it is not an agent for {env_id}.")

    def _algorithm(self) -> str:
        ending = f"-{EnvironmentName(self.env_id)}.zip"
        for archive in sorted(self.folder.glob("*.zip")):
            if archive.name.endswith(ending):
                return archive.name.removesuffix(ending)
        raise ValueError(f"{self.folder} contains no agent for {self.env_id} (<algorithm>{ending}).")

    def settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        How to build the environment.

        :return: Wrappers and frame stacking, and arguments of the environment
        :raises ValueError: If they ask for something that could run code or open files; the message names file and reason
        """
        config = self.folder / "config.yml"
        hyperparams = read_yaml(config) if config.is_file() else {}
        env_kwargs = saved_env_kwargs(self.folder, hyperparams)
        extra = self.folder / "env_kwargs.yml"
        if extra.is_file():
            env_kwargs.update(read_yaml(extra))
        wanted = {key: hyperparams[key] for key in ("env_wrapper", "vec_env_wrapper", "frame_stack") if hyperparams.get(key)}
        try:
            self._check_settings(wanted, env_kwargs, config)
        except ValueError:
            if not self.trust:
                raise
            print(f"Obeying settings that need --trust-remote-code: {printable(wanted | {'env_kwargs': env_kwargs})}")
        return wanted, env_kwargs

    def _check_settings(self, wanted: dict[str, Any], env_kwargs: dict[str, Any], config: Path) -> None:
        if "vec_env_wrapper" in wanted:
            self._refuse(config, f"vec_env_wrapper: {quoted(wanted['vec_env_wrapper'])} would run code that the file names")
        n_stack = wanted.get("frame_stack", 1)
        if type(n_stack) is not int or not 1 <= n_stack <= MAX_STACK:
            self._refuse(config, f"frame_stack: {quoted(n_stack)} is not a number from 1 to {MAX_STACK}")
        wrappers = wanted.get("env_wrapper", [])
        for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
            names = list(wrapper) if isinstance(wrapper, dict) else [wrapper]
            unknown = [name for name in names if not isinstance(name, str) or name not in SAFE_WRAPPERS]
            if unknown:
                self._refuse(config, f"env_wrapper: {quoted(unknown[0])} would run code that the file names")
            if not _harmless(list(wrapper.values()) if isinstance(wrapper, dict) else []):
                self._refuse(config, f"env_wrapper: {quoted(wrapper)} has an argument that may name a file")
        for key, value in env_kwargs.items():
            if not _harmless(value):
                self._refuse(self.folder / "env_kwargs.yml", f"{printable(key, 100)}: {quoted(value)} may name a file")

    @staticmethod
    def _refuse(path: Path, reason: str) -> None:
        raise ValueError(f"{path} is refused: {reason}. --trust-remote-code allows it.")

    def make_env(
        self,
        *,
        n_envs: int = 1,
        seed: int = 0,
        env_kwargs: dict[str, Any] | None = None,
        render_mode: str | None = None,
        log_dir: str | None = None,
    ) -> VecEnv:
        """
        The environment as in training, with the agent's normalisation of observations.

        :param n_envs: Number of environments
        :param seed: Seed
        :param env_kwargs: Arguments of the environment that overwrite the published ones
        :param render_mode: Gymnasium's render mode
        :param log_dir: Folder for monitor files
        """
        hyperparams, published = self.settings()
        n_stack = hyperparams.pop("frame_stack", 0)
        env_kwargs = published | (env_kwargs or {}) | ({"render_mode": render_mode} if render_mode else {})
        try:
            if is_tensor_env(self.env_id):
                env = tensor.make_for_agent(self.env_id, n_envs, hyperparams, env_kwargs, seed=seed, log_dir=log_dir)
            else:
                env = create_test_env(
                    self.env_id,
                    n_envs=n_envs,
                    seed=seed,
                    log_dir=log_dir,
                    should_render=False,
                    hyperparams=hyperparams,
                    env_kwargs=env_kwargs,
                    vec_env_cls=DummyVecEnv,  # worker processes cost more than these simulators
                )
        except (TypeError, AssertionError) as error:
            raise ValueError(f"{self.folder}: its settings do not fit {self.env_id}: {printable(error)}") from error
        env = self._normalize(env)
        return VecFrameStack(env, n_stack) if n_stack else env

    def _normalize(self, env: VecEnv) -> VecEnv:
        statistics = self.folder / "vec_normalize.pkl"
        if not self._pickled():
            return load_normalization(self.archive, env)
        if not statistics.is_file():
            return env
        print(f"--trust-remote-code: unpickling {statistics}, which can run code")
        env = VecNormalize.load(str(statistics), env)
        env.training = env.norm_reward = False
        return env

    def _pickled(self) -> bool:
        """Whether the pickle route is taken, as the archive has no complete description; an error if that is forbidden."""
        reason = why_unsafe(self.archive)
        if reason is not None and not self.trust:
            raise ValueError(
                f"{self.archive} {reason}, so that it can be loaded by unpickling only, which can run any code in it. "
                "--trust-remote-code allows that."
            )
        return reason is not None

    def load(self, env: VecEnv, *, device: str = "auto", seed: int | None = None) -> BaseAlgorithm:
        """
        :param env: Environment, whose spaces must be the agent's
        :param device: PyTorch device
        :param seed: Seed of the agent
        :raises ValueError: If the archive is not an agent that can be rebuilt without running code
        """
        model = (
            self._unpickle(device, seed) if self._pickled() else load_agent(self.archive, device=device, seed=seed, verbose=0)
        )
        check_for_correct_spaces(env, model.observation_space, model.action_space)
        return model

    def _unpickle(self, device: str, seed: int | None) -> BaseAlgorithm:
        if self.algo not in ALGOS:
            raise ValueError(f"{self.archive}: no algorithm is called {self.algo!r}.")
        print(f"--trust-remote-code: unpickling the member 'data' of {self.archive}, which can run any code in it")
        kwargs: dict[str, Any] = {"seed": seed}
        if issubclass(ALGOS[self.algo], OffPolicyAlgorithm):
            kwargs |= {"buffer_size": 1, "optimize_memory_usage": False}
        return ALGOS[self.algo].load(self.archive, device=device, **kwargs)


def with_due_care(agent: SavedAgent, trusted: bool) -> SavedAgent | PublishedAgent:
    """
    An agent of a log folder, to be loaded as the user's own if it is that.

    :param agent: The agent
    :param trusted: Whether the user has given ``--trust-remote-code``
    :return: The same; the files of a stranger are read like those of the Hub
    """
    if trusted or is_own(agent.folder):
        return agent
    print(f"It is {UNKNOWN}, and is loaded without running code of it")
    return PublishedAgent(original(agent.settings), agent.env_id, agent.algo, archive=agent.archive)


def _harmless(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) < 100 and not set(value) & set("/\\~:%")
    if isinstance(value, list):
        return len(value) <= 1000 and all(_harmless(item) for item in value)
    if isinstance(value, dict):
        return len(value) <= 1000 and all(_harmless(item) for pair in value.items() for item in pair)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int))
