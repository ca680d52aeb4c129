"""The numbers of a report are right, and its page shows text as text."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, trim_mean

from zoo.benchmarking import report, scores
from zoo.benchmarking.cells import Settings, expand, plan, write
from zoo.benchmarking.scores import CellState, aggregate, environment_table, interquartile_mean, read_benchmark, score_table

SETTINGS = Settings(n_timesteps=40, eval_freq=20, eval_episodes=2)


def add_cell(root: Path, algo: str, env: str, seed: int, final: float | None, best: float | None = None) -> Path:
    """Plan a cell; with a result if there is a mean final return."""
    (cell,) = expand(root, [algo], [env], [seed], SETTINGS)
    plan([cell])
    if final is not None:
        points = [{"timesteps": 20, "returns": [final if best is None else best] * 2, "lengths": [10, 10]}]
        points.append({"timesteps": 40, "returns": [final, final], "lengths": [10, 10]})
        attempts = [{"started": "2026-01-01T00:00:00+00:00", "seconds": 90.0, "resumed": False, "error": None}]
        result = {
            "format": 1,
            "cell": cell.describe(),
            "command": cell.command,
            "final": {
                "timesteps": 40,
                "budget": 40,
                "deterministic": True,
                "returns": [final - 1.0, final + 1.0],
                "lengths": [10, 10],
            },
            "curve": points,
            "attempts": attempts,
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "commit": None,
            "machine": {"cpu": "test", "cores": 2},
        }
        write(cell.folder, "result", result)
    return cell.folder


def fill(root: Path, finals: dict[tuple[str, str], list[float | None]]) -> list[CellState]:
    for (algo, env), values in finals.items():
        for seed, value in enumerate(values):
            add_cell(root, algo, env, seed, value)
    return read_benchmark(root)


# -- numbers ---------------------------------------------------------------------------------------------------------------


def test_table_of_scores(tmp_path: Path) -> None:
    add_cell(tmp_path, "sac", "Hopper-v5", 0, 1000.0, best=3000.0)
    add_cell(tmp_path, "sac", "Pendulum-v1", 0, -150.0)
    add_cell(tmp_path, "sac", "Hopper-v5", 1, None)
    table = score_table(read_benchmark(tmp_path)).set_index(["environment", "seed"])
    hopper = table.loc[("Hopper-v5", 0)]
    assert (hopper["final_return"], hopper["final_std"], hopper["n_episodes"]) == (1000.0, 1.0, 2)
    assert (hopper["best_return"], hopper["best_timesteps"]) == (3000.0, 20)
    assert (hopper["maximum_return"], hopper["normalised_final"]) == (4000.0, 0.25)
    assert (hopper["seconds"], hopper["state"]) == (90.0, "done")
    missing = table.loc[("Hopper-v5", 1)]
    assert missing["state"] == "missing"
    assert missing[["final_return", "best_return", "normalised_final", "timesteps"]].isna().all()
    assert np.isnan(table.loc[("Pendulum-v1", 0), "normalised_final"])  # no maximum return is known


def test_means_over_seeds(tmp_path: Path) -> None:
    cells = fill(
        tmp_path, {("sac", "Hopper-v5"): [1.0, 2.0, 6.0, None], ("td3", "Hopper-v5"): [5.0], ("qsm", "Hopper-v5"): [None]}
    )
    table = environment_table(score_table(cells)).set_index("algorithm")
    assert table.loc["sac", "final_mean"] == 3.0
    assert table.loc["sac", ["n_planned", "n_done"]].tolist() == [4, 3]
    assert 1.0 <= table.loc["sac", "final_low"] < 3.0 < table.loc["sac", "final_high"] <= 6.0
    assert table.loc["td3", "final_mean"] == 5.0
    assert table.loc["td3", ["final_low", "final_high"]].isna().all()  # one seed has no interval
    assert table.loc["qsm", ["final_mean", "final_low", "best_mean"]].isna().all()


def test_interquartile_mean_is_that_of_the_middle_half() -> None:
    assert interquartile_mean(np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0, 700.0])) == 3.5  # of 2, 3, 4 and 5


def test_aggregates(tmp_path: Path) -> None:
    hopper, swimmer, pendulum = "Hopper-v5", "Swimmer-v5", "Pendulum-v1"
    cells = fill(
        tmp_path,
        {
            # normalised: 0, 0.25, 0.5, 0.75 and 0.2, 0.4, 0.6, 4; the middle four of eight are 0.25, 0.4, 0.5 and 0.6
            ("sac", hopper): [0.0, 1000.0, 2000.0, 3000.0],
            ("sac", swimmer): [30.0, 60.0, 90.0, 600.0],
            ("sac", pendulum): [-1e6],
            ("td3", hopper): [4000.0] * 3,
            ("td3", swimmer): [150.0] * 3,
            ("qsm", hopper): [4000.0],
            ("qsm", swimmer): [150.0],
            ("dacer", hopper): [4000.0] * 3,
            ("dacer", swimmer): [None],
        },
    )
    found = {entry.algo: entry for entry in aggregate(score_table(cells))}
    sac = found["sac"]
    assert sac.iqm == pytest.approx((0.25 + 0.4 + 0.5 + 0.6) / 4)
    assert sac.n_runs == 8
    assert sac.interval is not None
    strata = [np.array([0.0, 0.25, 0.5, 0.75]), np.array([0.2, 0.4, 0.6, 4.0])]
    other = bootstrap(
        strata,
        lambda *columns, axis=-1: trim_mean(np.concatenate(columns, axis=axis), 0.25, axis=axis),
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert sac.interval == pytest.approx((other.low, other.high), abs=0.06)
    # thresholds reach from 0 to the largest score
    taus = scores.thresholds(score_table(cells))
    assert (taus[0], taus[-1]) == (0.0, 4.0)
    assert sac.profile is not None
    assert sac.profile[0] == 7 / 8  # a score of zero is not above zero
    assert sac.profile[np.searchsorted(taus, 0.55)] == 3 / 8
    assert sac.profile[-1] == 0.0
    # equal runs have an interval of no width
    assert found["td3"].iqm == 1.0
    assert found["td3"].interval == (1.0, 1.0)
    # one seed has a number, but no interval
    assert (found["qsm"].iqm, found["qsm"].interval, found["qsm"].band) == (1.0, None, None)
    assert "no interval: fewer than 3 seeds" in found["qsm"].note
    # who misses an environment has no aggregate, whatever the rest looks like
    assert (found["dacer"].iqm, found["dacer"].profile) == (None, None)
    assert found["dacer"].note == "no result on Swimmer-v5"


def test_no_maximum_no_aggregate(tmp_path: Path) -> None:
    assert aggregate(score_table(fill(tmp_path, {("sac", "Pendulum-v1"): [-200.0]}))) == []


def test_reports_are_reproducible(tmp_path: Path) -> None:
    cells = fill(tmp_path, {("sac", "Hopper-v5"): [1.0, 2.0, 6.0]})
    first, second = (aggregate(score_table(cells))[0] for _ in range(2))
    assert first.interval == second.interval


def test_states_of_cells(tmp_path: Path) -> None:
    folders = [add_cell(tmp_path, "sac", "Hopper-v5", seed, None) for seed in range(5)]
    failed = {"started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "resumed": False, "error": "exit status 1"}
    write(folders[1], "attempts", [failed])
    write(folders[2], "attempts", [failed, {**failed, "seconds": None, "error": None}])
    (folders[3] / "result.json").write_text('{"format": 2}', encoding="utf-8")
    (folders[4] / "cell.json").write_text("[]", encoding="utf-8")
    states = {cell.seed: (cell.state, cell.problem) for cell in read_benchmark(tmp_path)}
    assert states[0] == ("missing", "not started yet")
    assert states[1] == ("failed", "exit status 1")
    assert states[2] == ("missing", "interrupted or not finished yet")
    assert states[3][0] == states[4][0] == "damaged"
    assert "result.json is damaged" in states[3][1]
    assert "cell.json is damaged" in states[4][1]


# -- page ------------------------------------------------------------------------------------------------------------------

HOSTILE = '<script>document.title="ran"</script><img src="{url}/card" onerror="document.title=\'ran\'">'


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark with three algorithms on two environments, most of whose texts try to be more than text."""
    monkeypatch.setattr(scores, "N_RESAMPLES", 100)
    for algo, env in [("sac", "Hopper-v5"), ("sac", "Swimmer-v5"), ("td3", "Hopper-v5"), ('"><b onclick=x>', "Hopper-v5")]:
        for seed in range(3):
            add_cell(tmp_path, algo, env, seed, 100.0 * seed + len(algo))
    failed = add_cell(tmp_path, "td3", "Swimmer-v5", 0, None)
    error = "</td></table><script>document.title='ran'</script>"
    write(failed, "attempts", [{"started": "x", "seconds": 1.0, "resumed": False, "error": error}])
    return tmp_path


def make_page(root: Path, url: str = "http://127.0.0.1:9", heading: str = "A </title> & B") -> str:
    card = root / "sac" / "Hopper-v5" / "seed-0" / "README.md"
    card.write_text(f"---\ntags: []\n---\n{HOSTILE.format(url=url)}\n</pre></details>", encoding="utf-8")
    return report.make_report(root, root / "report", heading, 1.0).read_text(encoding="utf-8")


def test_everything_from_the_folders_is_escaped(hostile: Path) -> None:
    page = make_page(hostile)
    assert "<script" not in page
    assert "<b onclick" not in page
    assert "<title>A &lt;/title&gt; &amp; B</title>" in page
    assert "&lt;script&gt;document.title=&#34;ran&#34;" in page
    assert "&lt;/td&gt;&lt;/table&gt;&lt;script&gt;" in page
    # nothing that a browser would fetch: every address is inside the page
    assert set(re.findall(r'(?:src|href)="(data:image/svg\+xml|data:video/mp4|[^"]*)[;"]', page)) == {"data:image/svg+xml"}
    assert re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[0].startswith(
        "default-src &#39;none&#39;;"
    )


def test_tables_of_the_page(hostile: Path) -> None:
    page = make_page(hostile)
    assert "3 algorithms, 2 environments, 12 of 13 planned runs with a result." in page
    assert "not planned" in page  # the third algorithm was never asked for Swimmer
    assert "0 of 1 seed<" in page
    assert "no result on Swimmer-v5" in page
    assert "python zoo/train.py --algo sac --env Hopper-v5 --seed SEED -n 40" in page
    assert "seeds 0, 1, 2" in page
    assert "arXiv:2603.27450v1, Table 5: Hopper-v5 4000, Swimmer-v5 150." in page
    names = {path.name for path in (hostile / "report").iterdir()}
    assert names == {"index.html", "curves.csv", "scores.csv", "environments.csv", "aggregates.csv"}


def test_one_seed_and_nothing_at_all(tmp_path: Path) -> None:
    add_cell(tmp_path, "sac", "Hopper-v5", 0, 100.0)
    page = make_page(tmp_path)
    assert "With fewer than 3 seeds there is no interval." in page
    assert "No interval where an environment has fewer than 3 seeds." in page
    shutil.rmtree(tmp_path / "sac")
    add_cell(tmp_path, "sac", "Hopper-v5", 0, None)
    page = report.make_report(tmp_path, tmp_path / "report", "Empty", 1.0).read_text(encoding="utf-8")
    assert "0 of 1 planned run with a result." in page
    assert "<img" not in page


def test_videos(tmp_path: Path) -> None:
    small, large = (add_cell(tmp_path, "sac", "Hopper-v5", seed, 100.0) for seed in range(2))
    (small / "replay.mp4").write_bytes(b"small")
    published = large / "run" / "sac" / "Hopper-v5_1" / "hub" / "sac-Hopper-v5"  # as zoo/push_to_hub.py does
    published.mkdir(parents=True)
    (published / "replay.mp4").write_bytes(b"x" * 2_000_000)
    (published / "README.md").write_text("the card", encoding="utf-8")
    page = report.make_report(tmp_path, tmp_path / "report", "Videos", 1.0).read_text(encoding="utf-8")
    assert page.count("<video ") == 1
    assert 'src="data:video/mp4;base64,c21hbGw="' in page
    assert "seed 1 is not shown (2.0 MB, more than 1 MB): sac/Hopper-v5/seed-1/run/" in page
    assert "<pre>the card</pre>" in page


# -- browser ---------------------------------------------------------------------------------------------------------------


def chromium() -> str:
    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if name and (path := shutil.which(name)):
            return path
    pytest.skip("no Chromium found; install one (Debian: apt-get install chromium) or name it in CHROMIUM")


@pytest.fixture
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Opens a page in headless Chromium and returns the document after all scripts have run."""
    executable, profile = chromium(), tmp_path_factory.mktemp("chromium")

    def open_page(page: Path, *options: str) -> str:
        command = [executable, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--no-first-run"]
        command += ["--disable-background-networking", "--virtual-time-budget=3000", *options, page.resolve().as_uri()]
        result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return open_page


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server that notes what it is asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler)) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}", asked
        http_server.shutdown()


def test_browser_shows_tables_and_figures(hostile: Path, browse: Callable[..., str], server: tuple[str, list[str]]) -> None:
    url, asked = server
    make_page(hostile, url)
    document = browse(hostile / "report" / "index.html", "--dump-dom")
    for section in ("problems", "returns", "curves", "aggregates", "runs", "making", "cards"):
        assert f'<section id="{section}">' in document
    assert document.count("<table>") == 5
    assert document.count('<img src="data:image/svg+xml;base64,') == 3
    assert "<title>A &lt;/title&gt; &amp; B</title>" in document  # no script has changed it
    assert "<script" not in document
    assert '&lt;script&gt;document.title="ran"&lt;/script&gt;' in document
    assert asked == []


@pytest.mark.parametrize("policy", [True, False])
def test_browser_would_run_nothing_even_if_it_got_through(
    policy: bool, hostile: Path, browse: Callable[..., str], server: tuple[str, list[str]]
) -> None:
    url, asked = server
    page = make_page(hostile, url, heading="untouched")
    page = page.replace("<main>", f"<main>{HOSTILE.format(url=url)}", 1)
    if not policy:  # shows that this test would notice
        page = re.sub(r"<meta http-equiv[^>]*>", "", page)
    target = hostile / "report" / "attacked.html"
    target.write_text(page, encoding="utf-8")
    document = browse(target, "--dump-dom")
    assert ("<title>untouched</title>" in document) == policy
    assert (asked == []) == policy


def test_browser_draws_the_figures_with_the_style(hostile: Path, browse: Callable[..., str], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    make_page(hostile)
    shot = tmp_path / "shot.png"
    browse(hostile / "report" / "index.html", f"--screenshot={shot}", "--window-size=1200,3000", "--hide-scrollbars")
    with image.open(shot) as picture:
        assert picture.width == 1200
        colours = {colour for _, colour in picture.convert("RGB").getcolors(picture.width * picture.height)}
    assert (0x00, 0x72, 0xB2) in colours  # a curve
    assert (0xF5, 0xF7, 0xF9) in colours  # the head of a table, which needs the style sheet
