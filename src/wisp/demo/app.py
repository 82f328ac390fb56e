"""`wisp demo`: starts a server, lets six emulated devices write code, and compares with the target's own decoding."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from wisp.config import DEFAULT_EDGE_PORT, STOP_RULES
from wisp.demo.fleet import Completion, FleetDevice, Job, fleet
from wisp.demo.pair import DRAFT, TARGET, heldout_prompts
from wisp.demo.processes import command, run
from wisp.demo.proof import own_greedy_decoding
from wisp.demo.view import render_panes
from wisp.engines.packed.loading import without_loading_bars
from wisp.errors import ConfigError
from wisp.metrics import DraftingSummary, summarise_drafting
from wisp.types import SamplingParams, TokenId

PROMPTS_PER_DEVICE = 1
TEMPERATURE = 0.8
TOP_P = 0.95
PANE_LINES = 12
REFRESH_PER_SECOND = 12


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """What `wisp demo` does."""

    max_tokens: int = 64
    num_draft_tokens: int = 4
    stop_rule: str = "fixed"
    """One of STOP_RULES; num_draft_tokens is then the longest draft."""
    serve: bool = False
    json_output: bool = False
    engine: str = "transformers"
    """Of the target."""

    def __post_init__(self) -> None:
        if self.stop_rule not in STOP_RULES:
            raise ConfigError(f"stop_rule must be one of {', '.join(STOP_RULES)}, not {self.stop_rule!r}")


@dataclass(frozen=True, slots=True)
class Compared:
    """The completions of one kind of decoding, beside the target's own."""

    kind: str
    reference: str
    """What the target's own decoding is, here."""
    completions: Sequence[Completion]
    own: Sequence[Sequence[TokenId]]
    time: float
    """Seconds from the first request to the last token of all devices."""

    @property
    def num_identical(self) -> int:
        return sum(tuple(own) == done.tokens for own, done in zip(self.own, self.completions, strict=True))

    @property
    def num_tokens(self) -> int:
        return sum(len(done.tokens) for done in self.completions)

    @property
    def drafting(self) -> DraftingSummary:
        return summarise_drafting(record for done in self.completions for record in done.records)


def run_demo(config: DemoConfig) -> int:
    """Run the demo; returns 0 only if every text was identical. Raises errors of the tree."""
    logging.getLogger("wisp").setLevel(logging.WARNING)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    without_loading_bars()
    console = Console(stderr=config.json_output)
    return run(_demo(config, console))


async def _demo(config: DemoConfig, console: Console) -> int:
    console.print("Starting the server ...")
    async with command(
        ["serve", str(TARGET), "--name", "wisp-demo", "--port", "0", "--engine", config.engine, "--system", "fixed"]
    ) as ready:
        compared = await _compare(config, console, ready["address"])
        identical = all(each.num_identical == len(each.completions) for each in compared)
        console.print(_table(compared))
        console.print(_conclusion(compared, identical))
        if config.serve:
            await _leave_running(ready["address"], console)
        if config.json_output:
            sys.stdout.write(json.dumps(_values(compared, identical)) + "\n")
    return 0 if identical else 1


async def _compare(config: DemoConfig, console: Console, address: str) -> list[Compared]:
    """Greedy decoding, then seeded sampling: what the devices get, and what the target does alone."""
    async with fleet(address, config.num_draft_tokens, config.stop_rule) as devices:
        prompts = _prompts(devices)
        greedy = [Job(prompt, SamplingParams()) for prompt in prompts]
        sampled = [
            Job(prompt, SamplingParams(temperature=TEMPERATURE, top_p=TOP_P, seed=seed))
            for seed, prompt in enumerate(prompts, start=1)
        ]
        results = []
        for kind, jobs in (("greedy", greedy), ("seeded sampling", sampled)):
            completions, elapsed = await _live(console, devices, _run_jobs(devices, jobs, config.max_tokens))
            with console.status(f"{kind}: the target alone, for comparison ..."):
                reference, own = await _own_decoding(devices, jobs, config.max_tokens)
            results.append(Compared(kind, reference, completions, own, elapsed))
        return results


def _prompts(devices: Sequence[FleetDevice]) -> list[tuple[TokenId, ...]]:
    tokenizer = devices[0].device.tokenizer
    texts = [prompt.text for prompt in heldout_prompts()[: PROMPTS_PER_DEVICE * len(devices)]]
    return [tuple(tokenizer.encode(text).ids) for text in texts]


async def _run_jobs(devices: Sequence[FleetDevice], jobs: Sequence[Job], max_tokens: int) -> list[Completion]:
    """Each device its jobs one after the other, all devices at once; in the order of `jobs`."""

    async def work(index: int) -> list[Completion]:
        mine = jobs[index :: len(devices)]
        return [await devices[index].complete(job, max_tokens) for job in mine]

    done = await asyncio.gather(*(work(index) for index in range(len(devices))))
    return [done[index % len(devices)][index // len(devices)] for index in range(len(jobs))]


async def _live(
    console: Console, devices: Sequence[FleetDevice], work: Coroutine[Any, Any, list[Completion]]
) -> tuple[list[Completion], float]:
    """Show the devices while `work` runs; returns its result and how long it took."""
    clock = asyncio.get_running_loop().time
    started = clock()
    task = asyncio.create_task(work)
    panes = [each.pane for each in devices]
    render: Callable[[], Any] = lambda: render_panes(panes, PANE_LINES, console.width)  # noqa: E731
    if console.is_terminal:
        with Live(render(), console=console, auto_refresh=False) as live:
            while not task.done():
                await asyncio.wait({task}, timeout=1 / REFRESH_PER_SECOND)
                live.update(render(), refresh=True)
    completions = await task
    return completions, clock() - started


async def _own_decoding(
    devices: Sequence[FleetDevice], jobs: Sequence[Job], max_tokens: int
) -> tuple[str, list[Sequence[TokenId]]]:
    if jobs[0].sampling.greedy:
        stop = devices[0].device.target.eos_token_ids
        prompts = [job.prompt for job in jobs]
        return "generate() of transformers", [
            *await asyncio.to_thread(own_greedy_decoding, TARGET, prompts, max_tokens, stop)
        ]
    done = [await devices[0].complete(job, max_tokens, plain=True) for job in jobs]
    return "the server's decoding without drafts", [each.tokens for each in done]


def _table(compared: Sequence[Compared]) -> Table:
    table = Table("", *(each.kind for each in compared), title="Six devices (speed and distance emulated), one server")
    rows: dict[str, Callable[[Compared], str]] = {
        "completions": lambda each: str(len(each.completions)),
        "tokens": lambda each: str(each.num_tokens),
        "drafted tokens accepted": lambda each: f"{each.drafting.accepted_share:.0%}",
        "tokens per verification round": lambda each: f"{_tokens_per_round(each):.2f}",
        "drafting time wasted": lambda each: f"{each.drafting.waste_ratio:.0%}",
        "tokens/s, all devices": lambda each: f"{each.num_tokens / each.time:.0f}",
        "the target's own decoding": lambda each: each.reference,
        "identical to it": lambda each: f"{each.num_identical} of {len(each.completions)}",
    }
    for name, value in rows.items():
        table.add_row(name, *(value(each) for each in compared))
    return table


def _tokens_per_round(each: Compared) -> float:
    rounds = [record for done in each.completions for record in done.records if record.num_drafted]
    return sum(record.num_committed for record in rounds) / max(len(rounds), 1)


def _conclusion(compared: Sequence[Compared], identical: bool) -> str:
    if identical:
        return "[bold green]Every text is the target's own, byte for byte.[/]"
    wrong = ", ".join(f"{len(each.completions) - each.num_identical} of {each.kind}" for each in compared)
    return f"[bold red]Not identical: {wrong}.[/] This is a defect of WISP: please report it."


def _values(compared: Sequence[Compared], identical: bool) -> dict[str, Any]:
    drafting = summarise_drafting(record for each in compared for done in each.completions for record in done.records)
    return {
        "identical": identical,
        "prompts": sum(len(each.completions) for each in compared),
        "tokens": sum(each.num_tokens for each in compared),
        "accepted_share": round(drafting.accepted_share, 4),
        "waste_ratio": round(drafting.waste_ratio, 4),
        "tokens_per_s": round(sum(each.num_tokens for each in compared) / sum(each.time for each in compared), 1),
        "device_speed": "emulated",
        "network": "emulated",
        "kinds": {each.kind: {"identical": each.num_identical, "of": len(each.completions)} for each in compared},
    }


async def _leave_running(address: str, console: Console) -> None:
    """A device's endpoint to try, until interrupted."""
    arguments = ["edge", "--server", address, "--draft", str(DRAFT), "--port", str(DEFAULT_EDGE_PORT)]
    async with command(arguments) as ready:
        console.print(_HOW_TO_TALK.format(url=ready["url"], model=ready["model"]))
        stopped = asyncio.Event()
        for number in (2, 15):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await stopped.wait()
        console.print("Stopping ...")


_HOW_TO_TALK = """
A device's endpoint is at {url}. Try it (Ctrl-C ends it):

    curl {url}/completions -H 'Content-Type: application/json' \\
        -d '{{"prompt": "def read_lines(path):", "max_tokens": 48, "temperature": 0}}'

or in Python:

    from openai import OpenAI

    client = OpenAI(base_url="{url}", api_key="none")
    answer = client.completions.create(model="{model}", prompt="def read_lines(path):", max_tokens=48)
    print(answer.choices[0].text)
"""
