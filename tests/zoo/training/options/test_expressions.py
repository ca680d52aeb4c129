"""Settings written as text: what rl-zoo3's files hold means the same, and no text runs anything."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rl_zoo3
import rl_zoo3.exp_manager
import torch as th
import yaml
from stable_baselines3 import HerReplayBuffer
from torch import nn

from tests.zoo.processes import ROOT
from zoo.training.options.command_line import evaluate
from zoo.training.options.expressions import LARGEST, LONGEST, parse
from zoo.training.options.hyperparameters import EXPRESSIONS


def texts(folder: Path) -> set[str]:
    """Every setting of a folder of files that is text and stands for a value."""
    entries = [entry for path in folder.glob("*.yml") for entry in yaml.safe_load(path.read_text("utf-8")).values()]
    return {entry[key] for entry in entries for key in EXPRESSIONS if isinstance(entry.get(key), str)}


def test_the_files_of_rl_zoo3_mean_what_they_did() -> None:
    found = texts(Path(rl_zoo3.__file__).parent / "hyperparams")
    assert len(found) > 30
    for text in found:
        assert parse(text) == eval(text, vars(rl_zoo3.exp_manager)), text


def test_our_own_files_need_no_such_text() -> None:
    assert not texts(ROOT / "hyperparams")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dict(net_arch=dict(pi=[64, 64], qf=[64] * 2), activation_fn=dict(pi=mish, qf=nn.ReLU))", None),
        ("dict(optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(eps=1e-5))", None),
        ("HerReplayBuffer", HerReplayBuffer),
        ("[1e-3 * 2, -0.5, +1, 7 // 2, 2**-1, 1 - 2]", [2e-3, -0.5, 1, 3, 0.5, -1]),
        ("2 * [64, (1,) * 2]", [64, (1, 1), 64, (1, 1)]),
        ("(1, 'episode')", (1, "episode")),
        ("{'a': {1, 2}, 'b': None, 'c': True}", {"a": {1, 2}, "b": None, "c": True}),
        ("-np.inf", -np.inf),
        ("auto", "auto"),
    ],
)
def test_forms(text: str, value: Any) -> None:
    names = {"nn": nn, "th": th, "mish": "mish", "HerReplayBuffer": HerReplayBuffer, "np": np, "auto": "auto"}
    expected = eval(text, names) if value is None else value
    assert parse(text) == expected and type(parse(text)) is type(expected)


HOSTILE = [
    "__import__('os').system('touch proof')",
    "dict(a=__import__('os').system('touch proof'))",
    "[open('proof', 'w') for _ in [1]]",
    "(lambda: open('proof', 'w'))()",
    "nn.Module.__init__.__globals__['__builtins__']['open']('proof', 'w')",
    "th.os.system('touch proof')",
    "dict(activation_fn=th.hub.load)",
    "dict(activation_fn=nn.modules.module.__builtins__)",
    "dict(a=th.os)",
    "dict(a=th.utils.collect_env.subprocess.Popen)",
    "dict(**nn.__dict__)",
    "{**{}}",
    "f'{open(1)}'",
    "b'bytes'",
    "(a := 1)",
    "1 if open('proof', 'w') else 2",
    "9**9**9",
    "[0] * 10**9",
    "1 / 0",
    "1e308 * 10",
    "{[]: 1}",
    "'a' * 10",
    "-'a'",
    "not 1",
    "[1][0]",
    "dict([('a', 1)])",
    "list(1)",
    "(1).real",
    "(" * 500 + ")" * 500,
    "x" * (LONGEST + 1),
    "nul\0",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_is_none_of_the_forms_is_refused_and_not_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        parse(text)
    assert not list(tmp_path.iterdir())


def test_a_class_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"nn\.Relu: there is no Relu; did you mean ReLU\?"):
        evaluate("dict(activation_fn=nn.Relu)")


def test_a_list_may_be_repeated_within_reason() -> None:
    assert len(parse(f"[0] * {LARGEST}")) == LARGEST
    for text in (f"[0] * {LARGEST + 1}", f"{LARGEST + 1} * [0]", f"[[]] * {LARGEST + 1}"):
        with pytest.raises(ValueError, match="more than"):
            parse(text)


@pytest.mark.parametrize("inside", ["[0] * 1000", "{'a': [0] * 1000}", "{(0,) * 1000}"])
def test_lists_in_a_repeated_list_count(inside: str) -> None:
    """Such a list is small in memory, but not for whoever goes through it."""
    with pytest.raises(ValueError, match="more than"):
        parse(f"[{inside}] * 2")


def test_a_number_without_a_zero_is_a_number() -> None:
    assert evaluate(".5") == 0.5
    assert evaluate("./file") == "./file"
