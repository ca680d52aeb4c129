"""``zoo/speed/benchmark.py --against``: the protocol, with programs of a few lines on the other side."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.processes import ROOT, check, run, script
from zoo.speed.external import External, ExternalError
from zoo.speed.machine import Load, busy_seconds, own_seconds, pin
from zoo.speed.report import compare, comparison_table, merge

HONEST = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["request"] == "describe":
        answer = {"name": "fake", "versions": {"fake": "1.0"}, "algorithms": ["qsm", "dacer"]}
    else:
        settings = request["settings"]
        print(request["algorithm"], settings, file=sys.stderr)
        answer = {"updates_per_second": 2.0 * settings["batch_size"], "action_ms_1": 0.5, "note": "no number"}
    print(json.dumps(answer), flush=True)
"""
TINY = [
    "--device",
    "cpu",
    "--threads",
    "1",
    "--batch-size",
    "8",
    "--width",
    "16",
    "--diffusion-steps",
    "2",
    "--seconds",
    "0.02",
]
SETTINGS = {"batch_size": 8}
BENCHMARK = script("speed/benchmark")


@pytest.fixture
def program(tmp_path: Path) -> Any:
    """Function that writes a program and returns the command that runs it."""

    def write(source: str) -> str:
        path = tmp_path / "program.py"
        path.write_text(source, encoding="utf-8")
        return f"{sys.executable} {path}"

    return write


def test_protocol(program: Any) -> None:
    rival = External(program(HONEST), threads=1, timeout=20.0)
    assert rival.describe() == {"name": "fake", "versions": {"fake": "1.0"}, "algorithms": ["qsm", "dacer"]}
    assert rival.measure("qsm", SETTINGS) == {"updates_per_second": 16.0, "action_ms_1": 0.5}
    assert rival.measure("dacer", {"batch_size": 4})["updates_per_second"] == 8.0  # stays alive
    rival.close()
    assert rival._process.returncode == 0


def test_program_sees_the_number_of_threads(program: Any) -> None:
    source = "import json, os; input(); print(json.dumps({'updates_per_second': float(os.environ['OMP_NUM_THREADS'])}))"
    rival = External(program(source), threads=3, timeout=20.0)
    assert rival.measure("qsm", SETTINGS) == {"updates_per_second": 3.0}
    rival.close()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; sys.exit('no module named jax')", r"ended with status 1; its last words: no module named jax"),
        ("input(); print('compiling ...', flush=True)", r"wrote 'compiling \.\.\.', not a JSON object"),
        ("input(); print('[1, 2]', flush=True)", r"not a JSON object"),
        ("""input(); print('{"error": "out of memory"}', flush=True)""", r"reports: out of memory"),
        ("""input(); print('{"updates_per_second": 0}', flush=True)""", r"no valid updates_per_second for qsm"),
        ("""input(); print('{"updates_per_second": NaN}', flush=True)""", r"no valid updates_per_second for qsm"),
        ("""input(); print('{"updates": 3}', flush=True)""", r"no valid updates_per_second for qsm"),
    ],
    ids=["crash", "garbage", "no object", "error", "zero", "nan", "missing"],
)
def test_failures_are_named(program: Any, source: str, message: str) -> None:
    rival = External(program(source), threads=1, timeout=20.0)
    with pytest.raises(ExternalError, match=message):
        rival.measure("qsm", SETTINGS)
    rival.close()


def test_crash_between_two_answers(program: Any) -> None:
    rival = External(program("""input(); print('{"updates_per_second": 1}', flush=True)"""), threads=1, timeout=20.0)
    rival.measure("qsm", SETTINGS)
    rival._process.wait(timeout=20.0)
    with pytest.raises(ExternalError, match="ended with status 0"):
        rival.measure("qsm", SETTINGS)
    rival.close()


def test_hanging_program_is_ended(program: Any) -> None:
    sleep = "import time; time.sleep(300)"
    source = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}])"
    rival = External(program(source), threads=1, timeout=0.2)
    with pytest.raises(ExternalError, match=r"did not answer within 0\.2 s \(--timeout\)"):
        rival.measure("qsm", SETTINGS)
    rival.close(patience=0.1)
    assert rival._process.returncode != 0
    rival._readers[0].join(timeout=20.0)  # ends when the last process that can write has ended, the program's child included
    assert not rival._readers[0].is_alive()


def test_command_that_does_not_exist() -> None:
    with pytest.raises(ExternalError, match="cannot start 'no-such-program'"):
        External("no-such-program", threads=1, timeout=1.0)


def test_description_without_algorithms(program: Any) -> None:
    rival = External(program("input(); print('{}', flush=True)"), threads=1, timeout=20.0)
    with pytest.raises(ExternalError, match="does not say which algorithms it has"):
        rival.describe()
    rival.close()


def test_ratios_by_hand() -> None:
    ours = [{"updates_per_second": updates, "action_ms_1": 1.0} for updates in (10.0, 30.0, 20.0)]
    theirs = [{"updates_per_second": 10.0, "action_ms_1": time_} for time_ in (2.0, 0.5, 4.0)]
    result = compare(ours, theirs)
    assert result["updates_per_second"] == 10.0
    # more updates per second are better, and so is less time per action
    assert result["speedups"]["updates_per_second"] == {"median": 2.0, "min": 1.0, "max": 3.0, "turns": [1.0, 3.0, 2.0]}
    assert result["speedups"]["action_ms_1"] == {"median": 2.0, "min": 0.5, "max": 4.0, "turns": [2.0, 0.5, 4.0]}
    assert set(result["speedups"]) == {"updates_per_second", "action_ms_1"}  # what both have
    row = comparison_table({"qsm": {"updates_per_second": 20.0, "action_ms_1": 1.0, "against": result}}).splitlines()[2]
    assert row == "| qsm | updates/s | 20 | 10 | 2.00 | 1.00 to 3.00 |"


@pytest.mark.expensive  # two programs; what they say to each other is tested above
def test_against_a_program(program: Any, tmp_path: Path) -> None:
    arguments = ["--algo", "qsm", "sac", *TINY, "--repetitions", "2", "--max-load", "1e9", "--against", program(HONEST)]
    result = run(BENCHMARK, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "| qsm | updates/s |" in result.stdout
    assert "| sac | updates/s |" not in result.stdout
    report = json.loads((tmp_path / "benchmark_speed.json").read_text(encoding="utf-8"))
    assert report["against"]["name"] == "fake"
    assert report["against"]["versions"] == {"fake": "1.0"}
    qsm = report["results"]["qsm"]
    assert qsm["against"]["updates_per_second"] == 16.0
    assert qsm["against"]["speedups"]["updates_per_second"]["median"] == pytest.approx(qsm["updates_per_second"] / 16.0)
    assert len(qsm["against"]["turns"]) == 2
    assert "against" not in report["results"]["sac"]


def test_against_itself(tmp_path: Path) -> None:
    rival = f"{sys.executable} {BENCHMARK} --serve --device cpu"
    arguments = ["--algo", "qsm", *TINY, "--repetitions", "1", "--max-load", "1e9", "--against", rival]
    result = run(BENCHMARK, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    against = json.loads((tmp_path / "benchmark_speed.json").read_text(encoding="utf-8"))["results"]["qsm"]["against"]
    assert set(against["speedups"]) == {"updates_per_second", "cpu_ms_per_update", "action_ms_1", "action_ms_1024"}
    assert against["peak_memory_mib"] > 0


def test_failure_ends_the_script_with_one_line(program: Any, tmp_path: Path) -> None:
    arguments = ["--algo", "qsm", *TINY, "--repetitions", "1", "--max-load", "1e9", "--against", program("print('hello')")]
    result = run(BENCHMARK, *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("wrote 'hello', not a JSON object; all but answers belongs on stderr")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "benchmark_speed.json").exists()


def test_merge(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    first = {"machine": {"cpu": "a"}, "settings": {"algo": ["qsm", "sac"], "width": 256}, "results": {"qsm": 1, "sac": 2}}
    assert merge(path, first) == first
    path.write_text(json.dumps(first), encoding="utf-8")
    second = {"machine": {"cpu": "a"}, "settings": {"algo": ["dacer", "sac"], "width": 256}, "results": {"dacer": 3, "sac": 4}}
    merged = merge(path, second)
    assert merged["results"] == {"qsm": 1, "sac": 4, "dacer": 3}
    assert merged["settings"]["algo"] == ["qsm", "sac", "dacer"]
    with pytest.raises(SystemExit, match=r"another settings \(width\)"):
        merge(path, {**second, "settings": {"algo": [], "width": 64}})
    with pytest.raises(SystemExit, match=r"another against \(name\)"):
        merge(path, {**second, "against": {"name": "another"}})


needs_proc = pytest.mark.skipif(not busy_seconds(), reason="the system does not tell how busy its cores are")


@needs_proc
def test_busy_machine_is_refused(program: Any, tmp_path: Path) -> None:
    result = run(BENCHMARK, "--algo", "qsm", *TINY, "--max-load", "-1", "--against", program(HONEST), cwd=tmp_path)
    assert result.returncode == 1
    assert "allow it with --max-load" in result.stderr


@needs_proc
def test_own_work_is_not_the_load_of_others() -> None:
    before_own, before_all = own_seconds(), sum(busy_seconds().values())
    work = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    child = subprocess.Popen([sys.executable, "-c", work])
    child.wait(timeout=60.0)
    own, busy = own_seconds() - before_own, sum(busy_seconds().values()) - before_all
    assert own >= 0.45  # the child has ended, its work is still ours
    assert busy >= own - 0.1  # both are counted in ticks


@needs_proc
def test_work_of_others_is_load() -> None:
    # a process with another parent: its own parent ends at once
    work = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {work!r}])"
    load = Load()
    subprocess.run([sys.executable, "-c", orphan], check=True, timeout=60.0)
    begin = time.perf_counter()
    busy = 0.0
    while busy < 0.4 and time.perf_counter() - begin < 60.0:
        time.sleep(0.2)
        value = load.read()
        assert value is not None
        busy += 0.2 * value
    assert busy >= 0.4


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot confine a process to cores")
def test_children_inherit_the_cores() -> None:
    code = "import os; from zoo.speed.machine import pin; pin(1); import subprocess, sys; " + (
        "subprocess.run([sys.executable, '-c', 'import os; print(len(os.sched_getaffinity(0)))'])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60.0)
    assert out.stdout.strip() == "1"


def test_nothing_to_pin() -> None:
    assert pin(10_000) == []


def test_the_table_and_the_report(tmp_path: Path) -> None:
    sizes = ["--batch-size", "8", "--width", "16", "--diffusion-steps", "2", "--n-particles", "2"]
    effort = ["--repetitions", "2", "--seconds", "0.02", "--threads", "1"]
    out = check(run(BENCHMARK, "--algo", "sdac", "sac", "--device", "cpu", *sizes, *effort, cwd=tmp_path))
    assert "| sdac |" in out
    report = json.loads((tmp_path / "benchmark_speed.json").read_text(encoding="utf-8"))
    assert report["settings"]["batch_size"] == 8
    assert report["machine"]["versions"]["sb3_diffusion"]
    for result in report["results"].values():
        assert len(result["turns"]) == 2
        assert 0.0 < result["share_of_ceiling"] < 1.5
        assert result["peak_memory_mib"] > 0
        for key in ("updates_per_second", "action_ms_1", "action_ms_1024", "gflop_per_update"):
            assert result[key] > 0
