"""`make bench-vllm`: WISP's engine on vLLM in units of vLLM by itself, and of WISP's engine on transformers.

On a GPU everything is measured with CUDA graphs and without them; on a CPU there are none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from wisp.bench.models import save_random_llama
from wisp.bench.timing import Ratio
from wisp.bench.vllm.decoding import Decoder, DecodingRatio, DecodingTurns, decode, decoding_turns
from wisp.bench.vllm.plain import PlainVllm
from wisp.bench.vllm.rounds import round_ratios
from wisp.engines.packed.loading import LoadOptions, without_loading_bars
from wisp.engines.target import TransformersTarget
from wisp.engines.vllm.settings import VllmSettings
from wisp.engines.vllm.target import VllmTarget

_PARTS = ("decoding", "rounds")
_KV_GIB = 1.0
"""Of each engine."""
_GPU_SHARE = 0.4
"""Of a GPU's memory: two engines stand side by side."""


@dataclass(frozen=True, slots=True)
class _Options:
    """What is measured."""

    model: Path
    dtype: str
    rounds: int
    pairs: int
    """Processes of WISP's engine and of plain vLLM, one pair after the other."""
    parts: Sequence[str]
    graphs: Sequence[bool]
    """Whether there are CUDA graphs, one after the other."""


def main() -> None:
    """Measure, and print tables or JSON."""
    given = _arguments()
    without_loading_bars()
    with TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        model = given.model or save_random_llama(Path(folder))
        graphs = [mode == "on" for mode in given.graphs]
        options = _Options(model, given.dtype, given.rounds, given.pairs, given.parts, graphs)
        decoding, rounds = _measure(options, progress)
    if given.json:
        sys.stdout.write(json.dumps(_values(decoding, rounds)) + "\n")
    else:
        _print(decoding, rounds)


def _arguments() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="wisp.bench.vllm", description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder (default: 88M random weights)")
    parser.add_argument("--dtype", default="auto", help="of all engines (auto: float32 on a CPU, else the model's own)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each alternative")
    parser.add_argument("--pairs", type=int, default=3, help="how often both vLLMs are loaded anew")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS, help="what to measure")
    modes = ("on", "off") if on_gpu else ("off",)
    parser.add_argument("--graphs", nargs="+", choices=modes, default=modes, help="CUDA graphs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    return parser.parse_args()


def _measure(options: _Options, progress: Progress) -> tuple[list[DecodingRatio], list[Ratio]]:
    decoding: list[DecodingRatio] = []
    rounds: list[Ratio] = []
    for graphs in options.graphs:
        settings, label = _settings(options, graphs=graphs), _label(graphs=graphs)
        if "decoding" in options.parts:
            pairs = [
                _beside_plain(settings, options.rounds, progress, label, plain_first=bool(index % 2))
                for index in range(options.pairs)
            ]
            decoding += [DecodingRatio.of(parts, label) for parts in zip(*pairs, strict=True)]
        if "rounds" in options.parts:
            rounds += _beside_transformers(settings, options, progress, label)
    return decoding, rounds


def _beside_plain(
    settings: VllmSettings, rounds: int, progress: Progress, label: str, *, plain_first: bool
) -> list[DecodingTurns]:
    with _pair(settings, plain_first=plain_first) as (target, plain):
        ours, theirs = Decoder(partial(decode, target), target.pid), Decoder(plain.generate, plain.pid)
        return list(decoding_turns(ours, theirs, target.card.vocabulary_size, rounds, progress, label))


def _beside_transformers(settings: VllmSettings, options: _Options, progress: Progress, label: str) -> list[Ratio]:
    reference = TransformersTarget.load(
        str(options.model), LoadOptions(options.dtype, memory_gib=_memory_gib(), kv_gib=_KV_GIB)
    )
    try:
        with _vllm(settings) as target:
            return list(round_ratios({"vLLM": target, "transformers": reference}, options.rounds, progress, label))
    finally:
        reference.shutdown()


@contextmanager
def _pair(settings: VllmSettings, *, plain_first: bool) -> Iterator[tuple[VllmTarget, PlainVllm]]:
    """Both vLLMs, loaded one after the other: alike processes compute at different speeds, and the order may be why."""
    with ExitStack() as stack:
        if plain_first:
            plain = stack.enter_context(closing(PlainVllm(settings)))
            target = stack.enter_context(_vllm(settings))
        else:
            target = stack.enter_context(_vllm(settings))
            plain = stack.enter_context(closing(PlainVllm(settings)))
        yield target, plain


@contextmanager
def _vllm(settings: VllmSettings) -> Iterator[VllmTarget]:
    target = VllmTarget.load(settings)
    try:
        yield target
    finally:
        target.shutdown()


def _label(*, graphs: bool) -> str:
    if not torch.cuda.is_available():
        return "CPU"
    return f"CUDA graphs {'on' if graphs else 'off'}"


def _settings(options: _Options, *, graphs: bool) -> VllmSettings:
    return VllmSettings(
        str(options.model),
        options.dtype,
        memory_gib=_memory_gib(),
        kv_gib=_KV_GIB,
        max_requests=32,
        max_new_tokens=4096,
        max_draft_tokens=8,
        graphs=graphs,
    )


def _memory_gib() -> float | None:
    """Of a GPU, for one engine."""
    if not torch.cuda.is_available():
        return None
    return float(_GPU_SHARE * torch.cuda.get_device_properties(0).total_memory / 2**30)


def _values(decoding: Sequence[DecodingRatio], rounds: Sequence[Ratio]) -> dict[str, object]:
    return {
        "decoding": [
            {
                "sequences": each.num_sequences,
                "tokens_per_s": each.tokens_per_s,
                "plain_tokens_per_s": each.plain_tokens_per_s,
                "wall": _value(each.times),
                "processor": _value(each.processor_times),
                "identical": each.num_identical,
                "outputs": each.num_outputs,
            }
            for each in decoding
        ],
        "rounds": [_value(each) for each in rounds],
    }


def _value(ratio: Ratio) -> dict[str, object]:
    return {**asdict(ratio), "ratio": ratio.ratio}


def _print(decoding: Sequence[DecodingRatio], rounds: Sequence[Ratio]) -> None:
    console = Console()
    if decoding:
        console.print(_decoding_table(decoding))
    if rounds:
        console.print(_rounds_table(rounds))


def _decoding_table(decoding: Sequence[DecodingRatio]) -> Table:
    columns = ("", "WISP, tokens/s", "plain vLLM, tokens/s", "ratio", "+-", "of processor times", "+-", "same outputs")
    table = Table(*columns, title="Decoding without drafts: WISP's engine on vLLM, and vLLM by itself")
    for each in decoding:
        wall, processor = each.times, each.processor_times
        table.add_row(
            wall.name.partition(":")[0],
            f"{each.tokens_per_s:.1f}",
            f"{each.plain_tokens_per_s:.1f}",
            f"{wall.ratio:.3f}",
            f"{wall.spread:.3f}",
            f"{processor.ratio:.3f}",
            f"{processor.spread:.3f}",
            f"{each.num_identical} of {each.num_outputs}",
        )
    return table


def _rounds_table(rounds: Sequence[Ratio]) -> Table:
    table = Table("", "vLLM, ms", "transformers, ms", "ratio", "+-", title="A verification round of WISP's engines")
    for each in rounds:
        table.add_row(
            each.name.partition(":")[0],
            f"{each.time * 1e3:.1f}",
            f"{each.reference_time * 1e3:.1f}",
            f"{each.ratio:.2f}",
            f"{each.spread:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
