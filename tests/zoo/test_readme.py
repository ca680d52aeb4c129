"""The README cannot drift from the project: its commands are those of CI, its links lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_set_up_is_two_commands_and_ci_runs_the_second() -> None:
    section = README.split("## Set up")[1].split("\n## ")[0]
    commands = re.findall(r"```bash\n(.*?)\n```", section, flags=re.DOTALL)
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    _, activate, install, check = commands[1].split(" && ")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert check in script.splitlines()
    assert activate.startswith(". ")
    extras = re.findall(r'"\.\[(.*)\]"', install)
    assert extras == re.findall(r'"\.\[(.*)\]"', script)


def test_links_to_the_documentation_exist() -> None:
    for target in re.findall(r"\]\((docs/[^)#]*)\)", README):
        assert (ROOT / target).is_file(), target
