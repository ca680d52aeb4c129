"""
Directive ``speed``: a report of ``zoo/speed/benchmark.py`` as a table.

    ```{speed} speed-cpu.json
    ```

reads ``docs/data/speed-cpu.json``. A report of ``--against`` becomes a table of both sides and their ratios.
"""

from typing import Any

from docutils import nodes
from measured import measured
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import markdown_table

from sb3_diffusion.taxonomy import available_methods

LATENCY = "action_ms_"
NONE = "\N{EN DASH}"


def algorithm(name: str) -> str:
    """Name of an algorithm in text."""
    names = {method.zoo_name: method.name for method in available_methods()}
    return names.get(name, f"{name.upper()} (SB3)")


def versus_table(results: dict[str, dict[str, Any]], rival: str) -> str:
    """
    :param results: Medians of every algorithm, as the script saves them
    :param rival: Name of the other implementation
    :return: Markdown table of the algorithms that both have
    """
    header = ["Algorithm", "Updates per second", rival, "Times as fast", "Range"]
    header += ["Action, 1 observation (ms)", rival, "Times as fast", "Range", "Share of ceiling"]
    rows = []
    for name, result in results.items():
        if "against" not in result:
            continue
        row = [algorithm(name)]
        for key, digits in (("updates_per_second", 1), (f"{LATENCY}1", 2)):
            speedup = result["against"]["speedups"].get(key)
            if speedup is None:
                row += [f"{result[key]:.{digits}f}", NONE, NONE, NONE]
                continue
            row += [f"{result[key]:.{digits}f}", f"{result['against'][key]:.{digits}f}", f"**{speedup['median']:.2f}**"]
            row += [f"{speedup['min']:.2f} to {speedup['max']:.2f}"]
        rows.append([*row, f"{100 * result['share_of_ceiling']:.0f} %"])
    return markdown_table(header, rows, n_text=1)


def versus_text(report: dict[str, Any]) -> list[str]:
    """
    :param report: What ``zoo/speed/benchmark.py --against`` saved
    :return: How the ratios came about, as Markdown lines
    """
    against = report["against"]
    sides = [side for result in report["results"].values() for side in (result, result.get("against")) if side]
    loads = [turn["load"] for side in sides for turn in side["turns"] if turn["load"] is not None]
    cores = report["machine"]["cores"]
    versions = ", ".join(f"{package} {release}" for package, release in against["versions"].items())
    lines = [f"* Other side: {against['name']}; {versions}"]
    lines += [f"* Both sides on the same {report['settings']['threads']} of {cores} cores, one after the other in every turn"]
    if loads:
        lines += [f"* Other processes kept {sorted(loads)[len(loads) // 2]:.2f} cores busy (median), {max(loads):.2f} at most"]
    return lines


def speed_table(results: dict[str, dict[str, Any]]) -> str:
    """
    :param results: Medians of every algorithm, as the script saves them
    :return: Markdown table
    """
    batches = [key.removeprefix(LATENCY) for key in next(iter(results.values())) if key.startswith(LATENCY)]
    header = ["Algorithm", "Updates per second", "ms per update"]
    header += [f"Action, {int(n):,} observation{'s' if n != '1' else ''} (ms)" for n in batches]
    header += ["Share of ceiling", "Peak memory (MiB)"]
    rows = []
    for algo, result in results.items():
        updates = result["updates_per_second"]
        row = [algorithm(algo), f"{updates:.1f}", f"{1000 / updates:.2f}"]
        row += [f"{result[LATENCY + n]:.2f}" for n in batches]
        rows.append([*row, f"{100 * result['share_of_ceiling']:.0f} %", f"{result['peak_memory_mib']:,.0f}"])
    return markdown_table(header, rows, n_text=1)


def speed_text(report: dict[str, Any]) -> str:
    """
    :param report: What ``zoo/speed/benchmark.py`` saved
    :return: The table and what it depends on, as Markdown
    """
    machine, settings, against = report["machine"], report["settings"], report.get("against")
    ceilings = [result["ceiling_gflops"] for result in report["results"].values()]
    versions = ", ".join(f"{package} {release}" for package, release in machine["versions"].items())
    kernels = {True: ", compiled CPU kernels", False: ", without compiled kernels"}.get(machine.get("kernels"), "")
    hardware = [machine[key] for key in ("cpu", "gpu") if key in machine]
    lines = [
        speed_table(report["results"]) if against is None else versus_table(report["results"], against["name"]),
        "",
        *(versus_text(report) if against else []),
        f"* Machine: {', '.join(hardware)}; {settings['threads']} thread(s), device {settings['device']}",
        f"* Ceiling: {min(ceilings):.0f} to {max(ceilings):.0f} GFLOP/s in 256 x 256 float32 matrix products, same run",
        f"* Sizes: observation {settings['obs_dim']}, action {settings['action_dim']}, batch {settings['batch_size']}, "
        f"networks {settings['width']} wide, {settings['diffusion_steps']} diffusion steps",
        f"* Execution: {settings['execution']}{kernels}; medians of {settings['repetitions']} turns",
        f"* Versions: Python {machine['python']}, {versions}",
    ]
    return "\n".join(lines)


class Speed(SphinxDirective):
    """The directive, see the module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(speed_text(measured(self, self.arguments[0])))


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("speed", Speed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
