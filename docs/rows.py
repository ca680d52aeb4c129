"""Measurements as rows of a csv file that is kept with the documentation: each has a key, and none is made twice."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Rows:
    """
    See the module. The file is read again before every change, so that several commands can fill it in turn.

    :param path: The file; made with its first row
    :param key: Names of the columns that tell rows apart
    :param fields: Names of the other columns
    """

    def __init__(self, path: Path, key: Sequence[str], fields: Sequence[str]):
        self.path, self.key, self.fields = path, tuple(key), (*key, *fields)

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        return self._key(row) in self.read()

    def read(self) -> dict[tuple[str, ...], dict[str, str]]:
        """Key -> row, as text."""
        if not self.path.is_file():
            return {}
        with self.path.open(encoding="utf-8", newline="") as file:
            return {self._key(row): row for row in csv.DictReader(file)}

    def put(self, *rows: Mapping[str, Any]) -> None:
        """
        :param rows: They take the places of those with the same keys; what a row lacks is left empty
        """
        known = self.read()
        known |= {self._key(row): {name: _text(row.get(name, "")) for name in self.fields} for row in rows}
        with self.path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(known.values())

    def _key(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(_text(row[name]) for name in self.key)


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
