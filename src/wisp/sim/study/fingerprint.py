"""By what a finished point is known: everything that defines it, the code that it came from included.

Of the code, the syntax tree without its docstrings counts: a comment makes no point stale, a changed threshold does.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

import wisp
from wisp.calibration.measured import MeasuredBatchTime
from wisp.sim.recorded import RecordedAcceptance
from wisp.sim.study.model import Task

SOURCES = (
    "types.py",
    "values.py",
    "metrics.py",
    "policy/*.py",
    "sim/*.py",
    "sim/study/variants.py",
    "calibration/fit.py",
    "calibration/measured.py",
    "calibration/nnls.py",
)
"""What decides the outcome of a simulation."""
LEFT_OUT = ("app.py", "options.py")
"""Of those: how it is asked for and shown."""


def fingerprint(task: Task) -> str:
    """The same for the same point by the same code, on every machine."""
    content = [
        code_fingerprint(),
        plain(task.cell.scenario),
        plain(task.system),
        task.seed,
        plain(task.measure),
    ]
    return _digest(json.dumps(content, sort_keys=True))


@cache
def code_fingerprint() -> str:
    """Of all that a simulation runs."""
    root = Path(wisp.__file__).parent
    return _digest("".join(code_outline(path.read_text(encoding="utf-8")) for path in _sources(root)))


def code_outline(source: str) -> str:
    """A module's syntax tree without docstrings and positions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_docstring(statement)]
    return ast.dump(tree)


def plain(value: Any) -> Any:
    """What a value consists of, as JSON. Raises TypeError for what has no content of its own."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [f"{type(value).__module__}.{type(value).__qualname__}", _content(value)]


def _content(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, MeasuredBatchTime):
        return plain(value.samples)
    if isinstance(value, RecordedAcceptance):
        return _recorded(value)
    raise TypeError(f"a {type(value).__qualname__} has no fingerprint")


@cache
def _recorded(acceptance: RecordedAcceptance) -> str:
    """A digest, made once: traces are long, and every point of a study has the same."""
    return _digest(json.dumps(plain((acceptance.header, acceptance.fates))))


def _sources(root: Path) -> Iterator[Path]:
    for pattern in SOURCES:
        yield from sorted(path for path in root.glob(pattern) if path.name not in LEFT_OUT)


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
