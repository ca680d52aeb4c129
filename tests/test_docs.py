"""
The documentation keeps its promises: examples run, links lead somewhere, lists are complete.

Python blocks of a page run one after the other in one namespace. A block that would train for long says how to shorten it, in
a MyST comment directly above it, which is not rendered::

    % test: "10_000" -> "120", "learning_starts=1_000" -> "learning_starts=100"

Each left side has to occur in the block, so that the comment cannot outlive a change of the text.
"""

import argparse
import csv
import importlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import sb3_diffusion
from sb3_diffusion.core.update.execution import EXECUTION_MODES
from sb3_diffusion.generative.flow import FLOW_SOLVERS
from sb3_diffusion.generative.schedules import CONTINUOUS_SCHEDULES, DISCRETE_SCHEDULES
from sb3_diffusion.generative.solvers.rules import SOLVERS
from sb3_diffusion.networks.activations import ACTIVATIONS
from sb3_diffusion.networks.backbones import DENOISER_BACKBONES
from sb3_diffusion.networks.embeddings import TIME_EMBEDDINGS
from sb3_diffusion.policies.actors.processes import PROCESSES
from sb3_diffusion.policies.values.critic import CRITIC_HEADS
from sb3_diffusion.taxonomy import Method, available_methods, get_method

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)

LONGEST_TRAINING = 200
BLOCK = re.compile(r"(?:^% test: (?P<marker>[^\n]+)\n)?^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
REPLACEMENT = re.compile(r'"([^"]+)" -> "([^"]*)"')
LINKS = (
    re.compile(r"\]\((?!https?://|#)([^)#\s]+)"),  # [text](file)
    re.compile(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`"),  # {doc}`page` and {doc}`text <page>`
    re.compile(r"^```\{(?:include|literalinclude)\} (\S+)", re.MULTILINE),
)
FENCED = re.compile(r"^(`{3,})(?!\{(?:include|literalinclude)\}).*?^\1`*$", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[str]:
    """The Python code of a page, shortened as its markers say."""
    blocks = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        code = match["code"]
        for long, short in REPLACEMENT.findall(match["marker"] or ""):
            assert long in code, f"{page.name}: the marker replaces {long!r}, which the block does not contain"
            code = code.replace(long, short)
        for steps in re.findall(r"\.learn\(([\d_]+)", code):
            assert int(steps) <= LONGEST_TRAINING, f"{page.name}: a block trains {steps} steps, add a marker that shortens it"
        blocks.append(code)
    return blocks


def relative(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def documentation_extension(name: str) -> ModuleType:
    pytest.importorskip("sphinx")
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS / "_ext"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(threads)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an example says of its batches, updates take few transitions, which makes them ten times as fast."""
    construct = OffPolicyAlgorithm.__init__

    def with_small_batches(self: OffPolicyAlgorithm, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        self.batch_size = min(self.batch_size, 16)

    monkeypatch.setattr(OffPolicyAlgorithm, "__init__", with_small_batches)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=relative)
def test_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None, small_batches: None
) -> None:
    blocks = python_blocks(page)
    if any("-v5" in block for block in blocks):
        pytest.importorskip("mujoco")
    if any("make_dmc" in block for block in blocks):
        pytest.importorskip("dm_control")
    if any("progress_bar" in block for block in blocks):
        pytest.importorskip("rich")
    if any("onnx" in block for block in blocks):
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "example"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{relative(page)}, block {number}", "exec"), namespace)


def test_marker_without_block_is_noticed() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        used = [match for match in BLOCK.finditer(text) if match["marker"]]
        assert text.count("\n% test:") == len(used), f"{relative(page)}: a test marker is not directly above a Python block"


@pytest.mark.parametrize("method", available_methods(), ids=lambda method: method.name)
def test_every_method_has_a_page_in_the_index(method: Method) -> None:
    page = DOCS / "algorithms" / f"{method.zoo_name}.md"
    assert page.is_file(), f"write docs/algorithms/{method.zoo_name}.md, the page of {method.name} (docs: contributing)"
    text = page.read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert sections == [
        "Idea",
        "Equations",
        "Differences from the reference implementation",
        "Can I use?",
        "Example",
        "Results",
        "How to replicate",
        "Parameters",
    ]
    assert method.arxiv in text
    assert method.class_path.replace(":", ".") in text
    assert f"\nalgorithms/{method.zoo_name}\n" in (DOCS / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", available_methods(), ids=lambda method: method.name)
def test_every_method_is_compared(method: Method) -> None:
    comparison = documentation_extension("comparison")
    for name, n_cells in comparison.COMPARISONS.items():
        assert len(comparison.row(method, name)) == n_cells


def test_the_switch_to_the_environment_is_told_of_every_method_that_learns_from_data() -> None:
    rows = [
        line
        for line in (DOCS / "guide" / "offline_online.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    told = {name.strip() for row in rows for name in row.split("|")[1].split(",")}
    assert {method.name for method in available_methods() if method.setting == "offline"} <= told


def test_a_page_without_a_comparison_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = documentation_extension("comparison")
    monkeypatch.setattr(comparison, "PAGES", tmp_path)
    (tmp_path / "qsm.md").write_text("# QSM\n\n% sampling: policy | one\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^write a line '% sampling: .* \| .*' on docs/algorithms/qsm.md$"):
        comparison.row(get_method("qsm"), "sampling")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_local_links_resolve(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for pattern in LINKS:
        for target in pattern.findall(text):
            start = DOCS if target.startswith("/") else page.parent
            path = start / target.lstrip("/")
            assert path.exists() or path.with_name(path.name + ".md").exists(), f"{relative(page)} links to {target}"


def test_files_named_in_the_text_exist() -> None:
    for page in PAGES:
        named = re.findall(r"`((?:sb3_diffusion|zoo|hyperparams|tests)/[\w/.-]+)`", page.read_text(encoding="utf-8"))
        for name in named:
            assert (ROOT / name).exists() or "mymethod" in name, f"{relative(page)} names {name}"


def test_changelog_contains_the_version() -> None:
    changelog = (DOCS / "misc" / "changelog.md").read_text(encoding="utf-8")
    assert f"## Release {sb3_diffusion.__version__}\n" in changelog
    assert f"Version {sb3_diffusion.__version__}" in (DOCS / "misc" / "citation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page, names",
    [
        ("guide/policies.md", [*DENOISER_BACKBONES, *ACTIVATIONS, *TIME_EMBEDDINGS, *CRITIC_HEADS]),
        ("guide/policies.md", [*PROCESSES, *SOLVERS, *FLOW_SOLVERS, *CONTINUOUS_SCHEDULES, *DISCRETE_SCHEDULES]),
        ("guide/speed.md", [f'"{mode}"' for mode in EXECUTION_MODES]),
        ("guide/zoo.md", [method.zoo_name for method in available_methods()]),
    ],
)
def test_every_name_is_documented(page: str, names: list[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("command", ["run", "report"])
def test_benchmark_options_are_those_of_the_command_line(command: str) -> None:
    """Every option has a row with all its spellings, and every default that is named is the real one."""
    pytest.importorskip("rl_zoo3")
    pytest.importorskip("jsonschema")
    from zoo.benchmark import make_parser

    (commands,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    options = {
        spelling: action.default
        for action in commands.choices[command]._actions
        for spelling in action.option_strings
        if spelling not in ("-h", "--help")
    }
    page = (DOCS / "guide" / "benchmark.md").read_text(encoding="utf-8")
    table = page.split(f"| Option of `{command}` |")[1].split("\n\n")[0]
    documented: dict[str, str | None] = {}
    for row in table.splitlines()[2:]:
        names, meaning = row.strip("| ").split(" | ")
        match = re.search(r"(\S+) by default", meaning)
        documented |= dict.fromkeys(re.findall(r"`(-[^`]+)`", names), match[1].strip("`") if match else None)
    assert documented.keys() == options.keys()
    for spelling, default in documented.items():
        value = options[spelling]
        if default is not None and value is not None:
            assert default == (f"{value:,g}" if isinstance(value, int | float) else str(value)), spelling


# -- pages that need no network ----------------------------------------------------------------------------------------------


def build(folder: Path, page: str) -> tuple[str, str]:
    """One page, built with the extensions that these tests are about: the page and the warnings."""
    pytest.importorskip("math_core")
    mathml = documentation_extension("mathml")
    from sphinx.application import Sphinx

    source, warnings = folder / "source", io.StringIO()
    source.mkdir()
    extensions = ["myst_parser", "mathml", "self_contained"]
    settings = (
        f"extensions = {extensions}\nhtml_math_renderer = 'mathml'\nmyst_enable_extensions = ['amsmath', 'dollarmath']\n"
    )
    (source / "conf.py").write_text(settings, encoding="utf-8")
    (source / "index.md").write_text(page, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_ext"))
        app = Sphinx(source, source, folder / "html", folder / "trees", "html", status=None, warning=warnings)
        app.build()
    assert (folder / "html" / "_static" / mathml.FONT).is_file()
    return (folder / "html" / "index.html").read_text(encoding="utf-8"), warnings.getvalue()


def test_formulas_are_mathml_and_pages_need_no_other_host(tmp_path: Path) -> None:
    formulas = "Text $\\alpha_t$ and\n\n$$\n\\frac{a}{b} < 1\n$$ (ratio)\n\nsee {eq}`ratio`.\n"
    link = "[a link](https://example.org) and ![](missing.png)\n"
    script = "\n```{raw} html\n<script async src='https://example.org/x.js'></script>\n```\n"
    page, warnings = build(tmp_path, f"# Title\n\n{formulas}\n$\\unknowncommand$\n\n{link}{script}")
    assert re.search('<span class="math"><math><msub><mi>\N{GREEK SMALL LETTER ALPHA}</mi>', page)
    assert re.search(r'<div class="math"[^>]*><span class="eqno">\(1\).*<math display="block"><mfrac>', page, re.DOTALL)
    assert "mathjax.js" not in page.lower() and "cdn" not in page.lower()
    lines = [line for line in warnings.splitlines() if "missing.png" not in line]
    assert len(lines) == 2, warnings
    assert "index.md" in lines[0] and "\\unknowncommand" in lines[0] and "cannot be converted to MathML" in lines[0]
    assert "index.html loads something from another host: <script async src='https://example.org/x.js'>" in lines[1]


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        "<script defer src=//cdn.example.org/a.js></script>",
        '<link rel="stylesheet" href="http://example.org/a.css">',
        '<link href="https://example.org/a.woff2" rel="preload">',
        '<IMG alt="x" SRC="https://example.org/a.png">',
        '<video controls poster="https://example.org/a.png">',
        '<source src="https://example.org/a.mp4">',
        '<iframe src="https://example.org"></iframe>',
        '@import "https://example.org/a.css";',
        "@font-face { src: url(https://example.org/a.woff) }",
        "body { background: url( '//example.org/a.png' ) }",
    ],
)
def test_what_comes_from_another_host_is_found(text: str) -> None:
    self_contained = documentation_extension("self_contained")
    assert len(self_contained.loaded_from_elsewhere(f"<p>before</p>{text}<p>behind</p>")) == 1


@pytest.mark.parametrize(
    "text",
    [
        '<a href="https://example.org/a.js">read</a>',
        '<link rel="canonical" href="https://example.org/page.html">',
        '<script src="_static/a.js"></script><a href="https://example.org">x</a>',
        '<img src="data:image/png;base64,AAAA">',
        "a { background: url(a.png) } /* see https://example.org */",
        "<code>&lt;script src=&quot;https://example.org&quot;&gt;</code>",
        '<svg xmlns="http://www.w3.org/2000/svg">',
    ],
)
def test_links_that_load_nothing_are_fine(text: str) -> None:
    assert documentation_extension("self_contained").loaded_from_elsewhere(text) == []


def test_videos_of_pretrained_agents_are_shown(tmp_path: Path) -> None:
    pretrained = documentation_extension("pretrained_table")
    shown = pretrained.videos(pretrained.PRETRAINED)
    assert len(shown) == len(list(pretrained.PRETRAINED.glob("*/results.json")))
    wall = pretrained.video_wall(shown, "../_static")
    assert wall.count("<video ") == len(shown)
    assert 'src="../_static/pretrained/sdac-Hopper-v5.mp4"' in wall
    for attribute in ("controls", "muted", "loop", 'preload="metadata"'):
        assert wall.count(f" {attribute}") == len(shown)
    odd = pretrained.video_wall([tmp_path / 'a"><script>' / "replay.mp4"], "_static")
    assert "<script>" not in odd
    # what an agent has done on one environment stands together
    environments = [path.parent.name.partition("-")[2] for path in shown]
    assert environments == sorted(environments)


# -- results -------------------------------------------------------------------------------------------------------------


def write_results(data: Path, **entry: Any) -> None:
    """Two seeds of QSM on an environment whose name has a slash, with two evaluations each."""
    (data / "curves").mkdir()
    for seed, rewards in enumerate([(-5.0, -3.0), (-9.0, -11.0)]):
        with (data / "curves" / f"qsm-toy-Env-v0-seed{seed}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["timesteps", "mean_reward", "std_reward", "n_episodes"])
            writer.writerows([1000 * (i + 1), reward, 0.5, 10] for i, reward in enumerate(rewards))
    default = {"protocol": "10 episodes", "versions": {"torch": "1"}}
    special = {"seeds": [0, 1], "budget": "2,000 steps", "command": "train --seed {seed}", **entry}
    (data / "results.json").write_text(json.dumps({"default": default, "qsm-toy-Env-v0": special}), encoding="utf-8")


def test_results_come_from_the_files(tmp_path: Path) -> None:
    results = documentation_extension("results_table")
    write_results(tmp_path, commit="abc")
    runs, entry = results.read_experiment(tmp_path, "qsm", "toy/Env-v0")
    table = results.results_table([runs]).replace("\N{MINUS SIGN}", "-").splitlines()
    assert table[2:] == [
        "| QSM | 0 | -3.0 ± 0.5 | -3.0 | 2,000 |",
        "| QSM | 1 | -11.0 ± 0.5 | -9.0 | 1,000 |",
        "| **QSM** | **mean of 2** | **-7.0 ± 5.7** | **-6.0** |  |",
    ]
    text = results.conditions([runs], [entry])
    for fact in ("2,000 steps", "10 episodes", "torch 1", "abc", "train --seed 0\ntrain --seed 1"):
        assert fact in text
    results.draw([runs], {"note": "", "points": [[1000, -4]]}, "toy/Env-v0", "dark", tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"seeds": [0, 1, 2]}, "lacks qsm-toy-Env-v0-seed2.csv"),
        ({"budgte": "typo"}, "unknown keys budgte"),
    ],
)
def test_incomplete_results_are_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    results = documentation_extension("results_table")
    write_results(tmp_path, **entry)
    with pytest.raises(ValueError, match=message):
        results.read_experiment(tmp_path, "qsm", "toy/Env-v0")
    with pytest.raises(ValueError, match="no entry 'sdac-toy-Env-v0'"):
        results.read_experiment(tmp_path, "sdac", "toy/Env-v0")


def test_overview_has_a_row_per_algorithm(tmp_path: Path) -> None:
    overview = documentation_extension("results_overview")
    write_results(tmp_path, budget="2,000 steps; settings of a file (4 particles)")
    table = overview.overview_table(tmp_path, "toy/Env-v0").replace("\N{MINUS SIGN}", "-").splitlines()
    assert table[2:] == ["| QSM | 2 | 2,000 | -7.0 (-11.0 to -3.0) | -6.0 | settings of a file (4 particles) |"]
    assert len(overview.overview_table(tmp_path, "other-v0").splitlines()) == 2


# -- speed ---------------------------------------------------------------------------------------------------------------


def scaling_results() -> dict[str, Any]:
    steps = {"points": [{"value": 10, "ms_per_update": 12.0}, {"value": 20, "ms_per_update": 18.0}]}
    particles = {"default": 500, "points": [{"value": 125, "ms_per_update": 100.0}, {"value": 500, "ms_per_update": 350.0}]}
    rounds = {
        "value": 8,
        **{f"env_steps_per_second_{mode}": 1000.0 * i for i, mode in enumerate(("random", "acting", "training"))},
    }
    environments = {
        "laws": {f"ms_per_step_{mode}": {"a": 1.0, "b": -0.5, "power": 1} for mode in ("random", "acting", "training")}
    }
    return {
        "qsm": {
            "diffusion_steps": {**steps, "laws": {"ms_per_update": {"a": 6.0, "b": 0.6, "power": 1, "error": 0.021}}},
            "n_envs": {**environments, "points": [rounds]},
        },
        "sdac": {
            "n_particles": {**particles, "laws": {"ms_per_update": {"a": 16.7, "b": 0.667, "power": 1, "error": 0.1}}},
            "task": {"points": [{"value": "Ant", "ms_per_update": 1.25}]},
        },
    }


def test_scaling_tables_by_hand() -> None:
    scaling = documentation_extension("scaling")
    results = scaling_results()
    table = scaling.laws_table(results).splitlines()
    assert table[0] == "| Quantity | *x* | QSM | SDAC | Off by at most |"
    # the slope is that of one unit, here of 20 steps and of 100 particles
    none = "\N{EN DASH}"
    assert table[2] == f"| diffusion steps *T* | (*T* / 20) | 6 + 12\N{NO-BREAK SPACE}*x* | {none} | 2 % |"
    assert table[3] == f"| particles *K* | (*K* / 100) | {none} | 16.7 + 66.7\N{NO-BREAK SPACE}*x* | 10 % |"
    gains = scaling.gains_table(results, ["diffusion_steps 20 10", "n_particles 1 1/4"]).splitlines()
    times = "\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}"
    assert gains[2] == f"| diffusion steps: 20 → 10 | 1.50{times} | {none} |"
    assert gains[3] == f"| particles (of the default): 1 → 1/4 | {none} | 3.50{times} |"
    assert scaling.tasks_table(results).splitlines()[2] == "| SDAC | 1.2 |"
    environments = scaling.environments_text(results).splitlines()
    assert environments[2] == "| 8 | 0 | 1,000 | 2,000 |"
    assert environments[-1].startswith("* QSM, acting, one update per round takes 1 \N{MINUS SIGN} 0.5")


def test_law_of_a_square_uses_the_square_of_the_unit() -> None:
    scaling = documentation_extension("scaling")
    assert scaling.law_text({"a": 1.0, "b": 0.001, "power": 2}, 256).startswith("1 + 65.5")


def test_scaling_is_drawn(tmp_path: Path) -> None:
    scaling = documentation_extension("scaling")
    scaling.draw(scaling_results(), "dark", tmp_path / "scaling.svg")
    assert (tmp_path / "scaling.svg").stat().st_size > 1000


def test_ratios_are_shown() -> None:
    speed = documentation_extension("speed_table")
    ratio = {"median": 2.5, "min": 2.25, "max": 3.0}
    turn = {"load": 0.5}
    against = {"updates_per_second": 4.0, "speedups": {"updates_per_second": ratio}, "turns": [turn]}
    result = {
        "updates_per_second": 10.0,
        "action_ms_1": 0.25,
        "share_of_ceiling": 0.7,
        "ceiling_gflops": 95.0,
        "turns": [turn],
    }
    sizes = [
        "threads",
        "device",
        "obs_dim",
        "action_dim",
        "batch_size",
        "width",
        "diffusion_steps",
        "execution",
        "repetitions",
    ]
    report = {
        "machine": {"cpu": "a processor", "cores": 2, "python": "3.11", "versions": {"torch": "2"}},
        "settings": dict.fromkeys(sizes, 1),
        "results": {"qsm": {**result, "against": against}, "sdac": result},
        "against": {"name": "another", "versions": {"jax": "0.10"}},
    }
    text = speed.speed_text(report).splitlines()
    none = "\N{EN DASH}"
    assert text[2] == f"| QSM | 10.0 | 4.0 | **2.50** | 2.25 to 3.00 | 0.25 | {none} | {none} | {none} | 70 % |"
    assert text[3] == ""  # the other implementation has no SDAC
    assert "* Other side: another; jax 0.10" in text
    assert "* Other processes kept 0.50 cores busy (median), 0.50 at most" in text


def test_gallery_shows_every_curve() -> None:
    found = documentation_extension("gallery").curves(DOCS / "data")
    names = [name for name in json.loads((DOCS / "data" / "results.json").read_text("utf-8")) if name != "default"]
    shown = {f"{row['algorithm']}-{env}" for env, rows in found.items() for row in rows}
    assert names and shown.issuperset(names)
    assert {row["algorithm"] for row in found["Hopper-v5 (hopper)"]} >= {"sac", "qsm"}, "a grid of fewer methods stands beside"
    grids = {path.parent.name for path in (DOCS / "data" / "benchmark").glob("*/curves.csv")}
    assert "pendulum-rollouts" in grids and {row["algorithm"] for row in found["torch/Pendulum-v0"]} >= {"dppo", "genpo"}
    assert all(float(row["mean_return"]) > -1e6 and int(row["timesteps"]) > 0 for rows in found.values() for row in rows)
