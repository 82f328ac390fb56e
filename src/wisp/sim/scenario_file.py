"""Scenario files of `wisp simulate`, in TOML: what they say, where they are wrong, and what a command line changes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from wisp.errors import ConfigError, FormatError, UserError
from wisp.sim.keys import BY_NAME, KEYS
from wisp.sim.machine import MachineOptions, choose
from wisp.sim.options import SimulationOptions

FOLDER = Path(__file__).parent / "presets"
_OF_MACHINE = frozenset(one.name for one in fields(MachineOptions))


def presets() -> dict[str, Path]:
    """The scenario files that ship, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def options_of(file: Path | None, preset: str | None, given: Mapping[str, Any]) -> SimulationOptions:
    """What a file or a preset says, but for what was given on the command line: values by their options' names.

    Raises ConfigError and FormatError.
    """
    if file is not None and preset is not None:
        raise ConfigError("a preset is a scenario: give a scenario file or --preset, not both")
    if preset is not None:
        file = choose("preset", preset, presets())
    said = {} if file is None else _read(file)
    return _changed({**said, **dict(_checked(given))})


def _changed(values: Mapping[str, Any]) -> SimulationOptions:
    machine = {name: value for name, value in values.items() if name in _OF_MACHINE}
    return replace(
        SimulationOptions(machine=MachineOptions(**machine)),
        **{name: value for name, value in values.items() if name not in _OF_MACHINE},
    )


def _checked(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields, from what was given by name."""
    for name, value in given.items():
        key = BY_NAME[name]
        own = tuple(value) if isinstance(value, list) else value
        try:
            key.check(own)
        except UserError as error:
            raise ConfigError(f"--{name}: {error}") from error
        yield key.field, own


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read the scenario {path}: {error}") from error
    return dict(_Reader(path, text).values())


@dataclass(frozen=True, slots=True)
class _Reader:
    """One file."""

    path: Path
    text: str

    def values(self) -> Iterator[tuple[str, Any]]:
        """Fields with what is said of them. Raises FormatError, with the line."""
        for table, content in self._parsed().items():
            if table not in KEYS:
                raise self._wrong((table,), f"there is no such table{_suggestion(table, KEYS)}")
            if not isinstance(content, dict):
                raise self._wrong((table,), f"it is a table: write [{table}] above its keys")
            for name, value in content.items():
                yield self._value(table, name, value)

    def _parsed(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            message, _, place = str(error).rstrip(")").rpartition(" (at ")
            line = re.match(r"line (\d+)", place)
            number = line[1] if line else self.text.rstrip().count("\n") + 1
            raise FormatError(f"{self.path}:{number}: {message}") from error

    def _value(self, table: str, name: str, value: Any) -> tuple[str, Any]:
        key = KEYS[table].get(name)
        if key is None:
            raise self._wrong((table, name), f"there is no such key{_place_of(table, name)}")
        try:
            own = key.read(value, self.path.parent)
            key.check(own)
        except UserError as error:
            raise self._wrong((table, name), str(error)) from error
        return key.field, own

    def _wrong(self, names: Sequence[str], message: str) -> FormatError:
        return FormatError(f"{self.path}:{line_of(self.text, names)}: {'.'.join(names)}: {message}")


def line_of(text: str, names: Sequence[str]) -> int:
    """The line of valid TOML on which a table or a key begins: the first that cannot be left out for it to be there."""
    lines, begins = text.split("\n"), 1
    for number in range(1, len(lines) + 1):
        try:
            content: Any = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a value
        for name in names:
            content = content.get(name) if isinstance(content, dict) else None
        if content is not None:
            return begins
        begins = number + 1
    raise AssertionError(f"{'.'.join(names)} is not in the text")


def _place_of(table: str, name: str) -> str:
    other = next((other for other, keys in KEYS.items() if name in keys), None)
    return _suggestion(name, KEYS[table]) if other is None else f" here: it belongs to [{other}]"


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    """The one that was meant, or all."""
    close = get_close_matches(name.replace("_", "-"), known, n=1)
    if close:
        return f": did you mean {close[0]}?"
    everywhere = get_close_matches(name.replace("_", "-"), BY_NAME, n=1) if known is not KEYS else []
    if everywhere:
        table = next(table for table, keys in KEYS.items() if everywhere[0] in keys)
        return f": did you mean {everywhere[0]} of [{table}]?"
    return f": there are {', '.join(known)}"
