"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from wisp.config import DTYPES, ENGINES

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output: one JSON object per line.")]
Dtype = Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}; auto: float32 on a CPU, the checkpoint's on a GPU.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]
Threads = Annotated[int, typer.Option(help="CPU threads; more than one pays only on cores that nobody else uses.")]
MemoryGib = Annotated[float | None, typer.Option(help="GiB for weights and KV cache; default: what is free.")]
MaxContext = Annotated[int | None, typer.Option(help="Longest context in tokens; default: the model's own.")]
KvGib = Annotated[float | None, typer.Option(help="GiB for the KV cache; default: derived from the free memory.")]
Engine = Annotated[
    str, typer.Option(help=f"What computes the target: {', '.join(ENGINES)} (docs/operations.md helps to choose).")
]
TensorParallel = Annotated[int, typer.Option(help="GPUs to split the target over (vllm).")]
Quantization = Annotated[str | None, typer.Option(help="vLLM's name of a method; default: the checkpoint's own.")]
