"""Rows of an experiment in a csv file: written as they come, and never made twice."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Rows:
    """
    A csv file.

    :param path: The file; it need not be there yet
    :param fields: Its columns
    :param key: Those that say what was done
    """

    def __init__(self, path: Path, fields: Sequence[str], key: Sequence[str]):
        self.path, self.fields, self.key = path, list(fields), list(key)

    def read(self) -> list[dict[str, str]]:
        """All rows."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def has(self, done: Mapping[str, Any]) -> bool:
        """
        :param done: Values of the columns of the key, among others
        :return: Whether there is such a row
        """
        wanted = [str(_short(done[name])) for name in self.key]
        return any([row[name] for name in self.key] == wanted for row in self.read())

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """
        :param rows: Values by column; what is missing stays empty
        """
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.fields, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows({name: _short(row.get(name, "")) for name in self.fields} for row in rows)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
