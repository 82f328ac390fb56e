"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
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
TensorParallel = Annotated[
    int,
    typer.Option("--tensor-parallel", "--tensor-parallel-size", help="GPUs to split the target over (vllm)."),
]
Quantization = Annotated[str | None, typer.Option(help="vLLM's name of a method; default: the checkpoint's own.")]

# What `wisp simulate` and `wisp plan` are told of the conditions

SERVER, DEVICES, SESSIONS, RUN = "The server", "Devices and network", "Sessions", "The run"
Gpu = Annotated[str | None, typer.Option(help="Data sheet of the GPU; default: a100-80gb.", rich_help_panel=SERVER)]
SimulatedModel = Annotated[
    str | None,
    typer.Option(help="Target, or the path of its config.json; default: qwen3-32b.", rich_help_panel=SERVER),
]
WeightBits = Annotated[int, typer.Option(help="16, 8 or 4.", rich_help_panel=SERVER)]
KvTokens = Annotated[
    int | None, typer.Option(help="Tokens that the KV cache holds; default: what fits.", rich_help_panel=SERVER)
]
MaxBatch = Annotated[int, typer.Option(help="Requests in one batch.", rich_help_panel=SERVER)]
DraftSpeed = Annotated[
    str, typer.Option(help="Drafted tokens per second: LOW-HIGH or one value.", rich_help_panel=DEVICES)
]
RttMs = Annotated[str, typer.Option(help="Round trip: LOW-HIGH or one value.", rich_help_panel=DEVICES)]
AcceptanceRate = Annotated[float, typer.Option(help="Share of drafted tokens that are right.", rich_help_panel=DEVICES)]
Auc = Annotated[float, typer.Option(help="How well they are foreseen: the predictor's AUC.", rich_help_panel=DEVICES)]
AcceptanceTrace = Annotated[
    list[Path] | None,
    typer.Option(help="Recorded drafts instead: file of `wisp trace` (repeatable).", rich_help_panel=DEVICES),
]
SloSpeeds = Annotated[
    str, typer.Option(help="Classes in equal shares: tokens per second, with commas.", rich_help_panel=SESSIONS)
]
FirstToken = Annotated[
    float, typer.Option(help="Seconds within which the first token is due.", rich_help_panel=SESSIONS)
]
PromptTokens = Annotated[float, typer.Option(help="Mean length of a prompt.", rich_help_panel=SESSIONS)]
OutputTokens = Annotated[float, typer.Option(help="Mean length of an answer.", rich_help_panel=SESSIONS)]
Longest = Annotated[
    int | None, typer.Option(help="Leave out recorded sessions of more tokens.", rich_help_panel=SESSIONS)
]
Think = Annotated[
    float, typer.Option(help="Pause of a device between two sessions, mean seconds.", rich_help_panel=SESSIONS)
]
