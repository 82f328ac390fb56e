"""Prompts out of the standard library's files that the demo pair was not trained on, as JSON lines.

    python tools/heldout_prompts.py > prompts.jsonl

Each is a window of lines that ends inside a function or class: what an editor would have before the cursor.
"""

from __future__ import annotations

import json
import sysconfig
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

CORPUS = Path(__file__).resolve().parents[1] / "src" / "wisp" / "demo" / "models" / "corpus.json"
LINES = 16
"""Of a prompt, about: it begins with the definition before."""
PER_FILE = 12


def prompts(text: str) -> Iterator[str]:
    """Windows that begin at a definition, spread over the file."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.lstrip().startswith(("def ", "class ", "async def "))]
    spread = [start for start in starts if start + LINES < len(lines)]
    for start in spread[:: max(1, len(spread) // PER_FILE)][:PER_FILE]:
        yield textwrap.dedent("\n".join(lines[start : start + LINES])).rstrip()


def main() -> None:
    """Print one prompt a line, named after its file, turn by turn over the files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = json.loads(CORPUS.read_text(encoding="utf-8"))["heldout"]
    of_files = [list(prompts((root / name).read_text(encoding="utf-8"))) for name in names]
    for turn in zip_longest(*of_files):
        for name, text in zip(names, turn, strict=True):
            if text is not None:
                print(json.dumps({"name": name, "prompt": text}))


if __name__ == "__main__":
    main()
