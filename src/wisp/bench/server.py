"""What the server adds to the forward pass, and what a round costs on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from wisp.bench.workload import NUM_SESSIONS, echo_round_trips, run, run_rounds, served


@dataclass(frozen=True, slots=True)
class ServerOverhead:
    """What a saturated server does beside its forward passes; times in seconds per batch."""

    batch_size: float
    """Mean over the run."""
    forward_time: float
    between_time: float
    """Wall time from the end of one forward pass to the start of the next: what the engine loses."""
    forward_cpu: float
    other_cpu: float
    """All other CPU of the process: sampling, scheduling, gRPC, bookkeeping. Part of it runs beside the forward."""

    @property
    def lost_share(self) -> float:
        """Time lost between forward passes, in units of one."""
        return self.between_time / self.forward_time

    @property
    def round_share(self) -> float:
        """CPU per round beside the forward pass, in units of one forward pass."""
        return self.other_cpu / self.batch_size / self.forward_cpu


@dataclass(frozen=True, slots=True)
class WireRate:
    """Rounds per second through protocol and server, with an emulated target that takes no time."""

    one_session: float
    many_sessions: float
    echo: float
    """Round trips per second of a gRPC stream that only echoes frames of the same size, in the same run."""


def server_overhead(model: Path, num_rounds: int, progress: Progress) -> ServerOverhead:
    """Sessions without pause on a real target; twice the batch size, since half of them are on their way."""
    task = progress.add_task("server overhead", total=2)
    with served(str(model)) as server:
        run(run_rounds(server.address, NUM_SESSIONS, 4 * NUM_SESSIONS))
        progress.advance(task)
        before = server.account()
        elapsed = run(run_rounds(server.address, NUM_SESSIONS, num_rounds))
        after = server.account()
        progress.advance(task)
    spent = {name: after[name] - before[name] for name in after}
    batches = spent["batches"]
    return ServerOverhead(
        batch_size=spent["requests"] / batches,
        forward_time=spent["forward_s"] / batches,
        between_time=(elapsed - spent["forward_s"]) / batches,
        forward_cpu=spent["forward_cpu_s"] / batches,
        other_cpu=(spent["cpu_s"] - spent["forward_cpu_s"]) / batches,
    )


def wire_rate(num_rounds: int, progress: Progress) -> WireRate:
    """Round trips through the whole server, one session alone and many at once."""
    task = progress.add_task("round trips", total=3)
    with served("--bare") as server:
        run(run_rounds(server.address, 1, 50))
        one = run(run_rounds(server.address, 1, num_rounds))
        progress.advance(task)
        many = run(run_rounds(server.address, NUM_SESSIONS, num_rounds))
        progress.advance(task)
    echo = run(echo_round_trips(num_rounds))
    progress.advance(task)
    return WireRate(num_rounds / one, num_rounds / many, num_rounds / echo)
