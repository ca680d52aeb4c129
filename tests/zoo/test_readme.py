"""The README cannot drift from the package: its table is derived from the taxonomy, its commands are those of CI."""

import re
from pathlib import Path

from sb3_diffusion.taxonomy import GUIDANCE_MECHANISMS, REFERENCE_POLICIES, TAXONOMY, Method

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _cell(guidance: str, reference: str) -> str:
    methods = [method for method in TAXONOMY if (method.guidance, method.reference) == (guidance, reference)]
    return ", ".join(_link(method) for method in methods)


def _link(method: Method) -> str:
    return f"[**{method.name}**](docs/algorithms/{method.zoo_name}.md)" if method.available else method.name


def taxonomy_block() -> str:
    """What stands between the two markers."""
    rows = [["", *REFERENCE_POLICIES.values()], ["---"] * (1 + len(REFERENCE_POLICIES))]
    rows += [
        [title, *(_cell(key, reference) for reference in REFERENCE_POLICIES)] for key, title in GUIDANCE_MECHANISMS.items()
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_table_is_the_taxonomy() -> None:
    block = README.split("<!-- taxonomy:start -->")[1].split("<!-- taxonomy:end -->")[0].strip()
    assert block == taxonomy_block(), f"replace the block in README.md by:\n{taxonomy_block()}"


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
