"""The page that describes a published agent: YAML front matter for the Hub, Markdown for people."""

import re
import shlex
from typing import Any

import yaml

from ..training.runs.protocols import protocol_of

# Inside a line of Markdown these begin something: emphasis, code, a link, a formula, a cell. They get a backslash or become
# entities, and so do the dots and slashes by which bare addresses become links.
MARKUP = re.compile(r"([\\`*_\[\]$|~])")
HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
ADDRESSES = (("://", ":&#47;/"), ("www.", "www&#46;"))
SCORES, ACT = "## Scores", "## Act"
ABOUT_NOISE = (
    "Deterministic actions need noise to begin with. Fixed: the chain is silent, and further candidates always have the same "
    "noise. Fresh: all of it is drawn anew for every action, as the reference implementation does "
    "(`model.policy.evaluation_noise`)."
)
# Options of training that decide the result; paths, trackers and databases of the machine do not belong on the page.
TRAINING_OPTIONS = {
    "seed": "--seed",
    "n_timesteps": "-n",
    "n_envs": "--n-envs",
    "eval_freq": "--eval-freq",
    "eval_episodes": "--eval-episodes",
    "n_eval_envs": "--n-eval-envs",
    "vec_env": "--vec-env",
    "dataset": "--dataset",
    "pretrain_updates": "--pretrain-updates",
    "online_steps": "--online-steps",
}


def text(value: Any) -> str:
    """
    A value as text in a line: no part of it can be markup or end the line.

    :param value: Any plain value
    """
    line = MARKUP.sub(r"\\\1", " ".join(str(value).split())).translate(HTML)
    for plain, harmless in ADDRESSES:
        line = line.replace(plain, harmless)
    return line


def code(content: str, language: str = "") -> str:
    """
    A block of code whose fence is longer than any fence in it, so that it cannot end early.

    :param content: The code
    :param language: For colours
    """
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}"


def table(header: list[str], rows: list[list[Any]]) -> str:
    """
    :param header: Titles of the columns
    :param rows: Plain values
    """
    lines = [header, ["---"] * len(header), *([text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def metadata(class_name: str, env_id: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    """
    Front matter with which the Hub files the agent under Stable-Baselines3, and rl-zoo3 finds it.

    :param class_name: Class of the algorithm; its name in lower case is the name on the command line
    :param env_id: Environment
    :param evaluation: The evaluation to be listed
    """
    class_name, env_id = " ".join(class_name.split()), " ".join(
        env_id.split()
    )  # no value spans a line: one could end the block
    reward = f"{evaluation['mean_reward']:.2f} +/- {evaluation['std_reward']:.2f}"
    result = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"type": env_id, "name": env_id},
        "metrics": [{"type": "mean_reward", "name": "mean_reward", "value": reward, "verified": False}],
    }
    names = [env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3"]
    return {
        "library_name": "stable-baselines3",
        "tags": [*names, "sb3-diffusion", "diffusion-policy"],
        "model-index": [{"name": class_name, "results": [result]}],
    }


def training_command(args: dict[str, Any]) -> str:
    """
    The command that repeats the training.

    :param args: Saved arguments of the training
    """
    words = ["python", "zoo/train.py", "--algo", str(args.get("algo")), "--env", str(args.get("env"))]
    for name, option in TRAINING_OPTIONS.items():
        value = args.get(name)
        idle = name == "pretrain_updates" and not args.get("dataset")
        if value not in (None, "", -1) and not idle and (name, value) != ("online_steps", 0):
            words += [option, str(value)]
    for name, option in (("hyperparams", "-params"), ("env_kwargs", "--env-kwargs")):
        if args.get(name):
            words += [option, *(f"{key}:{value!r}" for key, value in args[name].items())]
    return shlex.join(words)


def model_card(facts: dict[str, Any], hyperparams: dict[str, Any], args: dict[str, Any], repo_id: str | None) -> str:
    """
    The whole page.

    :param facts: Content of ``results.json``
    :param hyperparams: Settings of the algorithm
    :param args: Saved arguments of the training
    :param repo_id: Repository on the Hub, if it is known
    """
    algo, env_id, class_name = facts["algorithm"], facts["env_id"], facts["class"]
    front = yaml.safe_dump(
        metadata(class_name, env_id, facts["evaluations"][0]), sort_keys=False, allow_unicode=True, width=10_000
    )
    title = f"# **{text(class_name)}** agent playing **{text(env_id)}**"
    about = (
        f"A trained {text(class_name)} agent of `sb3_diffusion`, "
        "which brings diffusion and flow policies to [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3)."
    )
    return (
        "\n\n".join(
            [
                f"---\n{front}---",
                title,
                about,
                SCORES,
                _scores(facts),
                ACT,
                _usage(algo, env_id, repo_id),
                "## Training",
                table(["", ""], _training(facts)),
                "The command, with the settings of the file `config.yml`:",
                code(training_command(args), "bash"),
                "## Settings",
                code(yaml.safe_dump(hyperparams, sort_keys=False, allow_unicode=True), "yaml"),
                "## Versions",
                _versions(facts),
            ]
        )
        + "\n"
    )


def with_scores(card: str, facts: dict[str, Any]) -> str:
    """
    :param card: The page of an agent
    :param facts: Content of ``results.json``, to which scores were added
    :return: The same page with these scores
    :raises ValueError: If it is none of ours
    """
    before, begin, rest = card.partition(f"\n{SCORES}\n")
    _, end, after = rest.partition(f"\n{ACT}\n")
    if not begin or not end:
        raise ValueError(f"The README.md has no sections {SCORES!r} and {ACT!r}: it was not written by zoo/push_to_hub.py.")
    return f"{before}{begin}\n{_scores(facts)}\n{end}{after}"


def _scores(facts: dict[str, Any]) -> str:
    rows = [
        [
            protocol_of(evaluation),
            f"{evaluation['mean_reward']:.2f} +/- {evaluation['std_reward']:.2f}",
            f"{evaluation['mean_length']:.1f}",
            evaluation["n_eval_episodes"],
            evaluation["seed"],
        ]
        for evaluation in facts["evaluations"]
    ]
    header = ["actions", "mean return +/- standard deviation", "mean length", "episodes", "seed of the evaluation"]
    note = "One agent, trained with one seed; the deviation is that among episodes. Rewards are not normalised."
    if any(evaluation.get("evaluation_noise") == "fresh" for evaluation in facts["evaluations"]):
        note += f" {ABOUT_NOISE}"
    note += "".join(_added_later(evaluation) for evaluation in facts["evaluations"])
    scale = facts["training"].get("scale")
    if scale is not None:
        header.append(f"score ({scale['origin']})")
        for row, evaluation in zip(rows, facts["evaluations"], strict=True):
            share = (evaluation["mean_reward"] - scale["low"]) / (scale["high"] - scale["low"])
            row.append(f"{scale['scale'] * share:.1f}")
        note += f" A score of 0 is a return of {scale['low']:g}, {scale['scale']:g} one of {scale['high']:g}."
    scores = table(header, rows)
    return f"{scores}\n\n{note}"


def _added_later(evaluation: dict[str, Any]) -> str:
    """Where a score is from that was added to those of the publication."""
    if "commit" not in evaluation:
        return ""
    release = evaluation.get("versions", {}).get("sb3_diffusion", "unknown")
    return (
        f" The score of {text(protocol_of(evaluation))} was added later, with sb3\\_diffusion {text(release)}, commit "
        f"{text(evaluation['commit'] or 'unknown')}."
    )


def _usage(algo: str, env_id: str, repo_id: str | None) -> str:
    act = f"python zoo/enjoy.py --algo {shlex.quote(algo)} --env {shlex.quote(env_id)}"
    if repo_id is None:
        return f"From a clone of the repository:\n\n{code(act, 'bash')}"
    organization, _, name = repo_id.partition("/")
    act += f" --from-hub -orga {shlex.quote(organization)} --repo-name {shlex.quote(name)}"
    archive = agent_file(algo, env_id)
    python = (
        "from huggingface_hub import hf_hub_download\nfrom sb3_diffusion import load_agent\n\n"
        f"model = load_agent(hf_hub_download({repo_id!r}, {archive!r}))\n"
        "action, _ = model.predict(observation, deterministic=True)"
    )
    return (
        f"From a clone of the repository:\n\n{code(act, 'bash')}\n\nIn Python:\n\n{code(python, 'python')}\n\n"
        "`load_agent` reads plain data and runs nothing that was downloaded. Where observations are normalised, the "
        "statistics are in the same file; `sb3_diffusion.load_normalization` puts them around an environment."
    )


def agent_file(algo: str, env_id: str) -> str:
    """
    Name of the archive, for which slashes become dashes and the prefix of a module goes.

    :param algo: Algorithm
    :param env_id: Environment
    """
    return f"{algo}-{env_id.rpartition(':')[2].replace('/', '-')}.zip"


def _training(facts: dict[str, Any]) -> list[list[Any]]:
    training = facts["training"]
    rows = [
        ["environment", facts["env_id"]],
        ["budget", _budget(training)],
        ["seed", training["seed"]],
        ["data set", _data(training.get("dataset"))],
        ["wall time of the run", f"{training['wall_time_s']:.0f} s" if training.get("wall_time_s") else None],
        ["machine", training.get("machine")],
        ["evaluated on", facts.get("evaluated_on")],
        ["code", facts.get("commit")],
        ["agent", training.get("agent")],
    ]
    return [row for row in rows if row[1] is not None]


def _budget(training: dict[str, Any]) -> str:
    updates, steps = training.get("offline_updates", 0), training["timesteps"]
    online = [f"{steps} {training['unit']}"] if steps or not updates else []
    return ", then ".join([*([f"{updates} updates on data"] if updates else []), *online])


def _data(dataset: Any) -> str | None:
    if not isinstance(dataset, dict):
        return None if dataset is None else str(dataset)
    task = f"; its task is {dataset['env_id']}" if dataset.get("env_id") else ""
    return (
        f"{dataset['name']}: {dataset['n_transitions']:,} transitions of {dataset['n_episodes']:,} episodes, "
        f"SHA-256 {dataset['checksum']}{task}. Not part of this repository."
    )


def _versions(facts: dict[str, Any]) -> str:
    trained, evaluated = facts["training"].get("versions", {}), facts["versions"]
    names = list(dict.fromkeys([*evaluated, *trained]))
    return table(["", "training", "evaluation"], [[name, trained.get(name, "-"), evaluated.get(name, "-")] for name in names])
