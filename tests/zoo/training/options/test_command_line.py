"""Options, ``key:value`` words and printed commands."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import rl_zoo3.train
from torch import nn

from zoo.training.options.command_line import evaluate, parse_assignment
from zoo.training.options.commands import command
from zoo.training.options.errors import explain, one_line
from zoo.training.options.registry import algorithm_names, register_algorithms
from zoo.training.options.train import OWN, make_parser, parse_options, parse_own_options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512", 512),
        ("-0.5", -0.5),
        ("1e-4", 1e-4),
        ("1_000", 1000),
        ("lin_3e-4", "lin_3e-4"),
        ("'lin_3e-4'", "lin_3e-4"),
        ("auto", "auto"),
        ("auto_0.1", "auto_0.1"),
        ("True", True),
        ("false", False),
        ("None", None),
        ("null", None),
        ("sb3_diffusion.envs.dmc.wrap_dmc", "sb3_diffusion.envs.dmc.wrap_dmc"),
        ("data/my-file.csv", "data/my-file.csv"),
        ("[1,'episode']", [1, "episode"]),
        ("{'pi': [8], 'qf': [8]}", {"pi": [8], "qf": [8]}),
        ("dict(net_arch=[64] * 2)", {"net_arch": [64, 64]}),
        ("dict(activation_fn=nn.ReLU)", {"activation_fn": nn.ReLU}),
        ("nn.Tanh", nn.Tanh),
        ("2**10", 1024),
    ],
)
def test_values_of_words(text: str, value: Any) -> None:
    assert evaluate(text) == value and type(evaluate(text)) is type(value)
    assert parse_assignment(f"key:{text}") == ("key", value)


@pytest.mark.parametrize("value", ["lin_3e-4", "auto", "3", "nn.ReLU", "a b", None, True, 0.1, [1, "x"], {"a": {"b": 2}}])
def test_a_resumed_run_passes_on_the_same_values(value: Any) -> None:
    assert parse_assignment(f"key:{value!r}") == ("key", value)


def test_a_value_may_contain_colons() -> None:
    assert parse_assignment("storage:sqlite:///study.db") == ("storage", "sqlite:///study.db")
    assert parse_assignment("net:{'a': 1}") == ("net", {"a": 1})


def test_a_key_may_name_a_member_of_a_dictionary(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_assignment("policy_kwargs.net_arch:[8]") == ("policy_kwargs.net_arch", [8])
    for word in ("policy_kwargs.net_arch.pi:[8]", ".net_arch:[8]", "policy_kwargs.:[8]"):
        with pytest.raises(ValueError, match="key:value"):
            parse_assignment(word)
    for option in ("--env-kwargs", "--eval-env-kwargs"):
        with pytest.raises(SystemExit):
            parse_options(shlex.split(f"--algo sac --env Pendulum-v1 {option} body.mass:2"))
        assert "body.mass is no name of an argument" in capsys.readouterr().err


def test_assignments_of_a_repeated_option_add_up() -> None:
    args = parse_options(shlex.split("--algo sac --env Pendulum-v1 -params tau:0.1 gamma:0.9 --hyperparams tau:0.2"))
    assert args.hyperparams == {"tau": 0.2, "gamma": 0.9}


def describe(parser: argparse.ArgumentParser) -> dict[str, tuple[set[str], Any, Any]]:
    return {
        action.dest: (set(action.option_strings), action.default, action.nargs)
        for action in parser._actions
        if action.dest not in (*OWN, "help", "algo", "env")
    }


def test_the_options_are_those_of_rl_zoo3(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, *args: Any) -> None:
        theirs.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(SystemExit):
        rl_zoo3.train.train()
    ours = describe(make_parser())
    assert ours.pop("n_envs") == ({"--n-envs"}, None, None)  # in rl-zoo3 a setting only
    # rl-zoo3 does not learn from data; these are stored with the others
    assert (ours.pop("dataset"), ours.pop("online_steps")) == (({"--dataset"}, "", None), ({"--online-steps"}, 0, None))
    assert ours.pop("pretrain_updates") == ({"--pretrain-updates"}, 10_000, None)
    assert ours == describe(theirs[0])


def test_own_options_are_separated() -> None:
    options, rest = parse_own_options(["--algo", "sac", "--dry-run", "--resume-freq", "5", "-n", "7"])
    assert (options.resume, options.resume_freq, options.dry_run, options.traceback) == (None, 5, True, False)
    assert rest == ["--algo", "sac", "-n", "7"]


def test_names_that_are_known_without_rl_zoo3_are_all_that_it_knows() -> None:
    register_algorithms()
    assert set(algorithm_names()) == set(rl_zoo3.train.ALGOS)


@pytest.mark.parametrize("module", [True, False])
def test_printed_commands_survive_a_shell(module: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "zoo.train"] if module else ["python", "my zoo/train.py"])
    monkeypatch.setattr(sys, "argv", ["my zoo/train.py"])
    words = ("--algo", "sac", "-f", "my logs; rm $HOME", "--exp-id", 3)
    program = ["python", "-m", "zoo.enjoy"] if module else ["python", str(Path("my zoo/enjoy.py"))]
    assert shlex.split(command("enjoy", *words)) == [*program, "--algo", "sac", "-f", "my logs; rm $HOME", "--exp-id", "3"]


def caught(function: Any, *args: Any) -> Exception:
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError


def test_only_messages_of_this_project_stand_alone() -> None:
    assert explain(caught(evaluate, "foo(")) == "'foo(' is no value ('(' was never closed; close every bracket and quote)"
    # a bug in code of this project, and an error of other code
    assert explain(caught(evaluate, 3)).startswith("AttributeError: 'int' object has no attribute 'strip'; --traceback")
    assert explain(caught(int, "x")).startswith("ValueError: invalid literal for int()")


def test_a_message_is_one_printable_line() -> None:
    assert one_line("two\nlines\t\x1b[31mred") == "two lines \\x1b[31mred"
    assert len(one_line("x" * 10_000)) < 1100
