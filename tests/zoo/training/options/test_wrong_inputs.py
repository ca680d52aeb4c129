"""Mistakes before the first step: one line that names argument, value and remedy, exit status 2, and no folder."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.zoo.processes import ROOT, run, script
from zoo import train
from zoo.training.manager import Manager

SAC, DACER = "--algo sac --env Pendulum-v1", "--algo dacer --env Pendulum-v1"
ODD = "--algo sac --gym-packages envs"
FILES = {
    "bad.yml": "Pendulum-v1: {policy: MlpPolicy, n_timesteps: [100\n",
    "list.yml": "- policy: MlpPolicy\n",
    "other.yml": "Hopper-v5: {policy: MlpPolicy, n_timesteps: 100}\n",
    "text.yml": "Pendulum-v1: MlpPolicy\n",
    "steps.yml": "Pendulum-v1: {policy: MlpPolicy, n_timesteps: 1e6}\n",
    "bare.yml": "Pendulum-v1: {learning_rate: 1.0e-3, n_timesteps: 100}\n",
    "endless.yml": "Pendulum-v1: {policy: MlpPolicy}\n",
    "quoted.yml": 'Pendulum-v1: {policy: MlpPolicy, n_timesteps: 9, policy_kwargs: "dict(net_arch=[1,"}\n',
    "search.yml": "Pendulum-v1: {policy: MlpPolicy, n_timesteps: 9}\nsearch: {tau: {low: 1e-3, high: 0.1}}\n",
    "searched.yml": "Pendulum-v1: {policy: MlpPolicy, n_timesteps: 9}\nsearch: {taau: {low: 0.1, high: 0.2}}\n",
    "raises.py": "1 / 0\n",
    "empty.py": "settings = {}\n",
    "broken_package.py": "raise OSError('no licence')\n",
    "envs.py": """
import gymnasium as gym
import numpy as np
from gymnasium import spaces

class Odd(gym.Env):
    def __init__(self, action_space=None, observation_space=None):
        self.action_space = action_space or spaces.Box(-1.0, 1.0, (2,))
        self.observation_space = observation_space or spaces.Box(-1.0, 1.0, (3,))
    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}
    def step(self, action):
        return self.observation_space.sample(), 0.0, True, False, {}

gym.register("Whole-v0", Odd, kwargs={"action_space": spaces.Box(-3, 3, (2,), np.int64)})
gym.register("Unbounded-v0", Odd, kwargs={"action_space": spaces.Box(-np.inf, np.inf, (2,))})
gym.register("Image-v0", Odd, kwargs={"observation_space": spaces.Box(0, 255, (36, 36, 3), np.uint8)})
gym.register("Odd-v0", Odd)
""",
}
# Options of a command line, and a part of the one line that is the answer.
MISTAKES: list[tuple[str, str]] = [
    # names
    ("--algo dacr --env Hopper-v5", "unknown algorithm 'dacr'; did you mean dacer?"),
    ("--algo dacer --env Hoper-v5", "unknown environment 'Hoper-v5'; did you mean Hopper-v5?"),
    ("--algo dacer --env Hopper-v2", "'Hopper-v2' is no longer part of Gymnasium; take Hopper-v5."),
    ("--algo dacer --env Pendulum-v0", "unknown environment 'Pendulum-v0'; did you mean Pendulum-v1?"),
    ("--algo dql --env hopper-medum-v2", "unknown environment 'hopper-medum-v2'; did you mean hopper-medium-v2?"),
    (
        "--algo dql --env rlzoo/hopper/mixd-v0",
        "unknown environment 'rlzoo/hopper/mixd-v0'; did you mean rlzoo/hopper/mixed-v0?",
    ),
    ("--algo sac --env mine:Car-v0", "write --env Car-v0 --gym-packages mine."),
    ("--algo sac", "--env is missing; for example: --algo dacer --env Hopper-v5"),
    ("--env Pendulum-v1", "--algo is missing"),
    ("", "--algo and --env are missing"),
    (f"{SAC} --eval-frq 5", "unrecognised: --eval-frq 5; did you mean --eval-freq?"),
    (f"{SAC} --dry", "write the option --dry-run in full"),
    (f"{SAC} --gym-packages not_there", "--gym-packages not_there: ModuleNotFoundError: No module named"),
    (f"{SAC} --gym-packages broken_package", "--gym-packages broken_package: OSError: no licence"),
    # numbers
    (f"{SAC} -n -5", "argument -n/--n-timesteps: -5 is too small; give at least 1, or -1 for those of the"),
    (f"{SAC} -n 0", "argument -n/--n-timesteps: 0 is too small"),
    (f"{SAC} -n many", "argument -n/--n-timesteps: 'many' is not a whole number"),
    (f"{SAC} --num-threads 0", "argument --num-threads: 0 is too small; give at least 1, or -1 for the default"),
    (f"{SAC} --seed -5", "argument --seed: -5 is too small; give at least 0, or -1 for a random one"),
    (f"{SAC} --seed 5000000000", "--seed 5000000000 is too large; give at most 4294967295"),
    (f"{SAC} -optimize --n-trials 0", "argument --n-trials: 0 is too small"),
    (f"{SAC} -optimize --n-jobs -1", "argument --n-jobs: -1 is too small"),
    (f"{SAC} --n-eval-envs 0", "argument --n-eval-envs: 0 is too small; give at least 1"),
    (f"{SAC} --eval-freq 1e4", "argument --eval-freq: '1e4' is not a whole number"),
    (f"{SAC} --save-freq often", "argument --save-freq: 'often' is not a whole number"),
    (f"{SAC} --eval-episodes 0", "--eval-episodes 0 gives --eval-freq 25000 nothing to do"),
    (f"{SAC} --log-interval 0", "argument --log-interval: 0 is too small"),
    (f"{SAC} --resume-freq -3", "argument --resume-freq: -3 is too small"),
    (f"{SAC} --trial-id 3", "--trial-id 3 needs --storage and --study-name"),
    (f"{SAC} --vec-env threads", "argument --vec-env: invalid choice: 'threads'"),
    (f"{SAC} --truncate-last-trajectory maybe", "'maybe' is neither true nor false"),
    # files and machines
    (f"{SAC} -i agent", "-i agent: there is no such file, give the archive of an agent"),
    (f"{SAC} -i saved", "-i saved: there is no such file; did you mean saved.zip?"),
    (f"{SAC} -i bad.yml", "-i bad.yml: the file of an agent ends in .zip"),
    (f"{SAC} -i saved.zip", ""),
    (f"{SAC} -f bad.yml", "-f bad.yml: bad.yml is a file, not a folder"),
    (f"{SAC} -conf nowhere.yml", "--conf-file nowhere.yml: there is no such file"),
    (f"{SAC} -conf nowhere", "settings file nowhere: ModuleNotFoundError: No module named 'nowhere'"),
    (f"{SAC} -conf bad.yml", "settings file bad.yml, line 2: expected ',' or ']'"),
    (f"{SAC} -conf list.yml", "settings file list.yml holds list; it must have one entry per environment."),
    (f"{SAC} -conf other.yml", "settings file other.yml has no entry 'Pendulum-v1' or 'default'; add"),
    (f"{SAC} -conf text.yml", "settings file text.yml: the entry 'Pendulum-v1' must have names and values"),
    (
        f"{SAC} -conf search.yml",
        "search.yml, search: tau: low='1e-3' must be a number (YAML takes 1e-3 for text; write 1.0e-3)",
    ),
    (f"{SAC} -optimize -conf searched.yml", "search: SAC cannot be searched over 'taau'; did you mean tau?"),
    (f"{SAC} -conf steps.yml", "YAML takes 1e6 for text; write 1000000."),
    (f"{SAC} -conf bare.yml", "the setting policy is missing"),
    (f"{SAC} -conf endless.yml", "the setting n_timesteps is missing"),
    (f"{SAC} -conf quoted.yml", "policy_kwargs='dict(net_arch=[1,' (quoted.yml, entry Pendulum-v1) is no value: "),
    (f"{SAC} -conf raises.py", "settings file raises.py: ZeroDivisionError: division by zero"),
    (f"{SAC} -conf empty.py", "settings file empty.py holds no dictionary hyperparams"),
    (f"{SAC} --device cuda:77", "--device cuda:77: "),
    (f"{SAC} --device gpu", "--device gpu is no device of PyTorch; take auto, cpu, cuda"),
    (f"{SAC} --device meta", "--device meta does not work here"),
    (f"{SAC} -optimize --storage study.txt", "--storage study.txt is no database; write sqlite:///study.db"),
    (f"{SAC} -optimize --storage oracle://me@nowhere/db", "--storage oracle://me@nowhere/db cannot be opened"),
    # settings
    (f"{SAC} -params batch_sise:3", "batch_sise=3 (-params): SAC has no argument 'batch_sise'; did you"),
    (f"{DACER} -params foo:1", "foo=1 (-params): DACER has no argument 'foo'; known are policy, "),
    (f"{SAC} -params batch_size", "argument -params/--hyperparams: 'batch_size' is not of the form key:value"),
    (f"{SAC} -params batch_size:", "'batch_size:' is not of the form key:value"),
    (f"{SAC} -params batch_size:abc", "batch_size='abc' (-params) must be a whole number of at least 1."),
    (f"{DACER} -params 'policy_kwargs:dict(net_arch=[1,'", "policy_kwargs: 'dict(net_arch=[1,' is no value ("),
    (f"{SAC} -params 'gamma:foo(3)'", "gamma: 'foo(3)' is no value (foo(3) is not read; there may be numbers"),
    (f"{SAC} -params batch_size:-3", "batch_size=-3 (-params) must be a whole number of at least 1."),
    (f"{SAC} -params gamma:7", "gamma=7 (-params) must be a number from 0 to 1."),
    (f"{DACER} -params tau:-3", "tau=-3 (-params) must be a number from 0 to 1."),
    (f"{SAC} -params buffer_size:-1", "buffer_size=-1 (-params) must be a whole number of at least 1."),
    (f"{DACER} -params learning_starts:-1", "learning_starts=-1 (-params) must be a whole number of at least 0."),
    (f"{SAC} -params 'train_freq:[1,'\"'\"'day'\"'\"']'", "train_freq=[1, 'day'] (-params) must be a whole number"),
    (f"{SAC} -params n_envs:0", "n_envs=0 (-params) must be a whole number of at least 1."),
    (f"{SAC} -params learning_rate:cos_3e-4", "learning_rate='cos_3e-4' (-params) must be a number of at least 0, or"),
    (f"{SAC} -params seed:3", "seed=3 (-params): this is the option --seed of the command line."),
    (f"{SAC} -params policy:MlpPolcy", "policy='MlpPolcy' (-params): SAC has no such policy; did you mean MlpPolicy"),
    (f"{DACER} -params policy:Gauss", "policy='Gauss' (-params): DACER has no such policy; known are"),
    (f"{SAC} -params policy:nowhere.Policy", "nowhere.Policy cannot be imported: ModuleNotFoundError"),
    (f"{SAC} -params 'policy_kwargs:dict(net_arh=[8])'", "SACPolicy has no argument 'net_arh'; did you mean"),
    (f"{DACER} -params 'policy_kwargs:dict(steps=3)'", "DiffusionPolicy has no argument 'steps'"),
    (f"{DACER} -params 'policy_kwargs:[64,64]'", "policy_kwargs=[64, 64] (-params) must be a dictionary."),
    (f"{DACER} -params execution:fast", "execution="),
    ("--algo td3 --env Pendulum-v1 -params noise_type:pink", "noise_type='pink' (-params) must be normal or ornstein"),
    (f"{SAC} -params noise_type:normal", "noise_type='normal' (-params) is half a noise"),
    ("--algo ppo --env Pendulum-v1 -params noise_type:normal", "PPO takes no action noise"),
    (f"{SAC} -params env_wrapper:nowhere.Wrapper", "nowhere.Wrapper cannot be imported"),
    (f"{SAC} -params env_wrapper:Wrapper", "'Wrapper' must be the full name, module.Class."),
    (f"{SAC} -params env_wrapper:gymnasium.wrappers.FrameStackObservation", "env_wrapper does not fit Pendulum-v1: TypeError"),
    (f"{SAC} -params callback:collections.OrderedDict", "collections.OrderedDict is no subclass of BaseCallback"),
    (f"{SAC} -params replay_buffer_class:HerBuffer", "replay_buffer_class='HerBuffer' (-params) must be a replay buffer"),
    (f"{SAC} -params replay_buffer_class:HerReplayBuffer", "AssertionError"),
    (f"{SAC} -params normalize:3", "normalize=3 (-params) must be true, false, or a dictionary"),
    (f"{SAC} -params 'normalize:dict(norm_ob=True)'", "VecNormalize has no argument 'norm_ob'; did you"),
    # environments
    (f"{SAC} --env-kwargs gravity:3", "environment Pendulum-v1 cannot be made with --env-kwargs gravity:3: "),
    (f"{SAC} --env-kwargs g", "argument --env-kwargs: 'g' is not of the form key:value"),
    (f"{SAC} --eval-env-kwargs gravity:3", "cannot be made with --eval-env-kwargs gravity:3: it has no"),
    ("--algo dacer --env CartPole-v1", "has actions Discrete(2), but DACER acts with continuous"),
    ("--algo sac --env CartPole-v1", "environment CartPole-v1 has actions Discrete(2), but SAC"),
    ("--algo dqn --env Pendulum-v1", "but DQN chooses among a few (Discrete)."),
    (f"{ODD} --env Whole-v0", "of whole numbers, to which SAC would"),
    (f"{ODD} --env Unbounded-v0", "without bounds; wrap it"),
    (
        "--algo dacer --env Odd-v0 --gym-packages envs -params normalize:true frame_stack:4",
        "normalize with frame_stack=4: DACER cannot replay observations that are normalised and then stacked",
    ),
    (
        f"{ODD} --env Image-v0 -params normalize:true policy:CnnPolicy",
        "normalize: the images of environment Image-v0 would be no images any more",
    ),
    (
        f"{ODD} --env Image-v0 -params 'normalize:dict(norm_obs=False)'",
        "normalize: SAC cannot replay the images of environment Image-v0, whose channels come last",
    ),
    *(
        (
            f"--algo {algo} --env Pendulum-v1 --save-replay-buffer",
            f"--save-replay-buffer: {algo} is on-policy and keeps no replay buffer; leave it out",
        )
        for algo in ("tensor_ppo", "ppo")
    ),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder but for a few files, from which modules can be imported."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "saved.zip").write_bytes(b"not an archive")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("envs", "broken_package"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=[options for options, _ in MISTAKES])
def test_one_line_and_no_folder(
    options: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(options)])
    with pytest.raises(SystemExit) as error:
        train.main()
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1, lines
    assert printed.out == "" or "--storage" in options  # a search has begun when it opens its database
    assert lines[0].startswith("train.py: error: ") and message in lines[0]
    assert error.value.code == 2
    assert files(folder) == before


def fail_in(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def broken(*args: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Manager, method, broken)
    monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(SAC), "-n", "10", "--eval-freq", "-1", "--traceback"])


def test_a_bug_before_the_first_step_is_named_and_can_be_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    fail_in(monkeypatch, "_save_config")  # when the folder is there already
    with pytest.raises(SystemExit) as error:
        train.main()
    assert error.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and any('raise KeyError("a bug")' in line for line in lines)
    assert lines[-1] == "train.py: error: KeyError: 'a bug'; --traceback shows where"
    assert files(folder) == before


def test_an_error_of_the_training_is_no_mistake_of_the_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in(monkeypatch, "learn")
    with pytest.raises(KeyError, match="a bug"):
        train.main()


def test_a_failed_start_leaves_the_runs_of_others_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder / "logs" / "sac" / "Pendulum-v1_1"
    other.mkdir(parents=True)
    fail_in(monkeypatch, "_save_config")
    with pytest.raises(SystemExit):
        train.main()
    assert [path.name for path in (folder / "logs" / "sac").iterdir()] == [other.name]


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("enjoy", "--algo sac --env Pendulum-v1 --device gpu", "--device gpu is no device of PyTorch"),
        ("enjoy", "--algo sac --env Pendulum-v1 -n -5", "argument -n/--n-timesteps: -5 is too small; give at least 1"),
        ("enjoy", "--algo sac --env Hopper-v3", "'Hopper-v3' is no longer part of Gymnasium; take Hopper-v5."),
        ("enjoy", "--algo sac --env Pendulum-v1 --env-kwargs g", "argument --env-kwargs: 'g' is not of the form key:value"),
        ("enjoy", "--algo sac --env Pendulum-v1 --stochastc", "unrecognised: --stochastc; did you mean --stochastic?"),
        ("enjoy", "--env Pendulum-v1", "the following arguments are required: --algo"),
        ("enjoy", "--algo sac --env Pendulum-v1 --gym-packages no", "--gym-packages no: ModuleNotFoundError"),
        ("push_to_hub", "--algo sac --env Pendulum-v1", "-orga is missing"),
        ("push_to_hub", "--algo sac --env Pendulum-v1 --dry-run --device gpu", "--device gpu is no device of PyTorch"),
        ("push_to_hub", "--algo sac --env Pendulum-v1 --dry-run --n-envs 0", "argument --n-envs: 0 is too small"),
        ("load_from_hub", "--algo sac --env Pendulum-v1 -orga a/b", "a/b"),
        ("load_from_hub", "--algo sac --env Pendulum-v1", "the following arguments are required: -orga/--organization"),
        ("benchmark", "run --algos sacc --envs Pendulum-v1 --seeds 0", "unknown algorithm 'sacc'; did you mean sac?"),
        ("benchmark", "run --algos sac --envs Pendulum-v0 --seeds 0", "unknown environment 'Pendulum-v0'"),
        ("benchmark", "run --algos sac --envs Pendulum-v1 --seeds x", "argument --seeds: invalid int value: 'x'"),
        ("benchmark", "run --algos sac --envs Pendulum-v1 --seeds 0 -params tau", "'tau' is not of the form key:value"),
        ("benchmark", "report -f nowhere", "nowhere holds no benchmark"),
        ("plot", "--window no", "argument --window: invalid _count value: 'no'"),
        ("plot", "nowhere", "there is no folder nowhere"),
        ("plot_toy", "--algo dacr", "argument --algo: invalid choice: 'dacr'"),
        ("plot_toy", "--updates 0", "argument --updates: 0 is too small"),
        ("plot_toy", "--temperature -1", "temperature=-1.0 must be positive"),
        ("plot_toy", "--device gpu", "--device gpu is no device of PyTorch"),
        ("plot_toy", "--output toy.svg", "--output toy.svg: the picture is a PNG file"),
        ("hub.record", "nowhere --env Pendulum-v0", "unknown environment 'Pendulum-v0'; did you mean Pendulum-v1?"),
        ("hub.record", "nowhere --env Pendulum-v1", "nowhere"),
    ],
)
def test_the_other_commands_do_the_same(
    command: str,
    options: str,
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = files(folder)
    name = command.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *shlex.split(options)])
    with pytest.raises(SystemExit) as error:
        importlib.import_module(f"zoo.{command}").main()
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}.py") and ": error: " in line and message in line
    assert files(folder) == before


SLOW = ("torch", "stable_baselines3", "rl_zoo3", "optuna", "pandas", "matplotlib", "huggingface_hub", "mujoco")
IMPATIENT = f"""
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {SLOW!r}:
            raise RuntimeError(f"{{name}} takes seconds")

sys.meta_path.insert(0, Blocker())
for line in sys.stdin.read().splitlines():
    sys.argv = line.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        print("status", error.code, flush=True)
"""


def test_names_and_options_are_checked_before_anything_slow_is_imported(tmp_path: Path) -> None:
    names = "--algo typo --env Hopper-v5", "--algo dacer --env Hoper-v5"
    lines = [f"{script(command)} {name}" for command in ("train", "enjoy", "push_to_hub", "load_from_hub") for name in names]
    lines += [f"{script('train')} {SAC} {options}" for options in ("-n 0", "--sed 3", "-params x", "-conf no.yml", "-i a.zip")]
    result = subprocess.run(
        [sys.executable, "-c", IMPATIENT],
        input="\n".join([*lines, f"{script('train')} --help"]),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert len(result.stderr.splitlines()) == len(lines), result.stderr
    assert all(".py: error: " in line for line in result.stderr.splitlines())
    assert result.stdout.splitlines()[: len(lines)] == ["status 2"] * len(lines)
    assert "usage: train.py" in result.stdout and result.stdout.endswith("status 0\n")


def test_a_wrong_setting_in_a_process_of_its_own(tmp_path: Path) -> None:
    result = run(script("train"), "--algo", "dacer", "--env", "Pendulum-v1", "-params", "foo:1", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert result.stdout == ""
    assert line.startswith("train.py: error: foo=1 (-params): DACER has no argument 'foo'")
    assert not list(tmp_path.iterdir())
