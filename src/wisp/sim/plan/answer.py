"""A plan in words, as a table, and for machines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from rich.box import SIMPLE
from rich.table import Column, Table

from wisp.policy.systems import SYSTEMS
from wisp.sim.capacity import Interval
from wisp.sim.options import SimulationOptions
from wisp.sim.plan.planner import Plan
from wisp.sim.scenario import Scenario

LIMITS = {
    "KV cache": "memory for the KV cache",
    "compute": "the engine's speed",
    "batch size": "the largest batch",
    "deadline": "the SLO itself",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A plan and what it was made for."""

    plan: Plan
    options: SimulationOptions
    machine: str
    """What the batch times are."""
    gpu_price: float | None
    """Of one GPU and hour."""
    num_devices: int | None = None
    """That are to be served; None: nobody said."""

    def cost(self, system: str) -> float | None:
        """Price of a million tokens in time, at the load with the margin; None: no price was given, or none came."""
        goodput = self.plan.figure(system, "goodput")
        if self.gpu_price is None or goodput is None or goodput.mean <= 0.0:
            return None
        return self.gpu_price / (goodput.mean * 3600.0) * 1e6

    @property
    def num_gpus(self) -> int | None:
        """That all devices need, with the margin, but at most one each; None: nobody said how many there are."""
        if self.num_devices is None:
            return None
        return ceil(self.num_devices / max(self.plan.devices(self.plan.recommended), 1))

    def words(self) -> list[str]:
        """The answer, a sentence or two each."""
        plan = self.plan
        name, devices = plan.recommended, plan.devices(plan.recommended)
        price = self.cost(name)
        paid = "" if price is None else f", {price:.3g} per million tokens in time"
        deploy = (
            f"Deploy {name} ({SYSTEMS[name].caption}): one GPU serves {_spread(plan.capacity(name))} such devices; "
            f"give it {devices} ({plan.margin:.0%}){paid}."
        )
        return [
            deploy,
            *self._fleet(),
            self._drafting(),
            self._limit(),
            *(f"Note: {warning}" for warning in self.warnings()),
        ]

    def _fleet(self) -> list[str]:
        if self.num_gpus is None:
            return []
        gpus = "one GPU" if self.num_gpus == 1 else f"{self.num_gpus} such GPUs, each with a server of its own"
        price = "" if self.gpu_price is None else f", {self.num_gpus * self.gpu_price:.4g} an hour"
        return [f"For {self.num_devices} devices take {gpus}{price}."]

    def _drafting(self) -> str:
        plan, ratio = self.plan, self.plan.drafting_over_centralized
        compared = (
            f"{plan.best_drafting} serves {ratio.mean:.2f} +- {ratio.half_width or 0.0:.2f} times the devices of "
            f"{plan.best_centralized}, the best system without them"
        )
        return {
            True: f"Drafting on the devices pays: {compared}.",
            False: f"Drafting on the devices does not pay: {compared}.",
            None: f"Whether drafting on the devices pays cannot be told from so few runs: {compared}.",
        }[self.drafting_pays]

    @property
    def drafting_pays(self) -> bool | None:
        """Whether the whole 95 % interval of the ratio lies above 1, or not above; None: it holds 1."""
        ratio = self.plan.drafting_over_centralized
        spread = ratio.half_width or 0.0
        if ratio.mean - spread > 1.0:
            return True
        return False if ratio.mean + spread <= 1.0 else None

    def _limit(self) -> str:
        limits = self.plan.limits
        if not limits:
            return "No single resource limits it: half as much again of one alone does not let it serve 15 % more."
        return f"What limits it: {' and '.join(LIMITS[name] for name in limits)}."

    def warnings(self) -> list[str]:
        """What the answer rests on that was not measured."""
        options = self.options
        found = []
        if options.machine.profile is None:
            found.append(
                "batch times are a data sheet's, not measured: run `wisp calibrate` on the GPU, give --profile."
            )
        if SYSTEMS[self.plan.recommended].drafts.on_server and self._scenario.server_drafter is not None:
            found.append(
                f"the drafter on the server is a data sheet's too, {options.machine.server_draft}: it has to share the "
                "model's vocabulary (--server-draft), and be right as often as the devices'."
            )
        if not options.acceptance_traces:
            found.append(
                f"that {options.acceptance:.0%} of drafted tokens are right is assumed: run `wisp trace` with your models, "
                "give --acceptance-trace."
            )
        if not options.lengths:
            found.append("lengths are drawn from a log-normal distribution: give your own with --lengths.")
        return found

    @property
    def _scenario(self) -> Scenario:
        return self.plan.results.study.cells[0].scenario

    def commands(self) -> list[str]:
        """How the recommended system is started."""
        system, options = self.plan.recommended, self.options
        slos = self._scenario.workload.slos
        serve = ["wisp", "serve", "MODEL", "--system", system]
        for slo in slos:
            serve += ["--slo-class", f"{slo.name.replace('/', '-per-')}={slo.tokens_per_s:g},{slo.first_token_s:g}"]
        if options.machine.profile is not None and SYSTEMS[system].estimates:
            serve += ["--profile", options.machine.profile]
        if SYSTEMS[system].drafts.on_server and self._scenario.server_drafter is not None:
            serve += ["--draft", "SERVER_DRAFT"]
        edge = ["wisp", "edge", "--server", "HOST:7600", "--system", system]
        if SYSTEMS[system].drafts.on_devices:
            edge += ["--draft", "DRAFT"]
        if SYSTEMS[system].stop_rule == "predicted":
            edge += ["--predictor", str(options.predictor or "PREDICTOR")]
        return [shlex.join(serve), shlex.join(edge)]

    def table(self) -> Table:
        """A row for each system."""
        heads = self.heads()
        wide = Column(heads[0], justify="right", no_wrap=True)
        columns = [Column("system", no_wrap=True), wide, *(Column(head, justify="right") for head in heads[1:])]
        table = Table(*columns, title="Simulated, per GPU", box=SIMPLE, pad_edge=False, collapse_padding=True)
        for system in self.plan.systems:
            table.add_row(*self.row(system), style="bold" if system == self.plan.recommended else "")
        return table

    def heads(self) -> Sequence[str]:
        """Of the table's columns, but for the system's."""
        heads = ["devices\nserved", "give it", "in time per s", "engine busy", "drafts right", "first token, p95 s"]
        return heads if self.gpu_price is None else [*heads, "price of 1M"]

    def row(self, system: str) -> Sequence[str]:
        """What the table says of a system, its name first."""
        plan, price = self.plan, self.cost(system)
        row = [system, _spread(plan.capacity(system)), f"{plan.devices(system)}"]
        row += [
            _figure(plan.figure(system, "goodput"), "{:.0f}"),
            _figure(plan.figure(system, "utilisation"), "{:.0%}"),
            _figure(plan.figure(system, "accepted_share"), "{:.0%}"),
            _figure(plan.figure(system, "p95_first_token_time"), "{:.2f}"),
        ]
        return row if self.gpu_price is None else [*row, "-" if price is None else f"{price:.3g}"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plan = self.plan
        names = ("goodput", "attainment", "utilisation", "accepted_share", "waste_ratio", "p95_first_token_time")
        systems = {}
        for system in plan.systems:
            figures = {name: plan.figure(system, name) for name in names}
            systems[system] = {
                "capacity": asdict(plan.capacity(system)),
                "devices": plan.devices(system),
                "cost_per_million_tokens": self.cost(system),
                "at_that_load": {name: None if one is None else one.mean for name, one in figures.items()},
            }
        return {
            "recommended": plan.recommended,
            "margin": plan.margin,
            "devices_per_gpu": plan.devices(plan.recommended),
            "devices": self.num_devices,
            "gpus": self.num_gpus,
            "drafting_pays": self.drafting_pays,
            "drafting_over_centralized": asdict(plan.drafting_over_centralized),
            "limits": list(plan.limits),
            "machine": self.machine,
            "warnings": self.warnings(),
            "commands": self.commands(),
            "seeds": list(plan.results.study.seeds),
            "systems": systems,
        }


def _spread(interval: Interval) -> str:
    return f"{interval.mean:.0f}" + ("" if interval.half_width is None else f" +- {interval.half_width:.0f}")


def _figure(interval: Interval | None, form: str) -> str:
    return "-" if interval is None else form.format(interval.mean)
