"""Write a pair of models to measure with that is larger than the demo's: 88M random weights, and their first layers.

    python tools/random_pair.py build/random-pair --layers 4
    wisp bench --target build/random-pair/target --draft build/random-pair/draft --system centralized --system fixed

What it says means nothing. Sampled with shared noise, drafter and target agree on part of their tokens, which is all
that a comparison of systems needs of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from wisp.bench.models import save_random_llama


def save_first_layers(target: Path, draft: Path, num_layers: int) -> None:
    """Write the target with its first layers alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(target)
    model.model.layers = model.model.layers[:num_layers]
    model.config.num_hidden_layers = num_layers
    model.save_pretrained(draft)
    AutoTokenizer.from_pretrained(target).save_pretrained(draft)


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4, help="Of the target's 13, in the drafter.")
    given = parser.parse_args()
    target = save_random_llama(given.folder / "target")
    save_first_layers(target, given.folder / "draft", given.layers)


if __name__ == "__main__":
    main()
