"""What happened when, as Trace Event Format: the JSON that Perfetto and chrome://tracing open.

A process for each verifier (its batches, its queue, its cache) and for each device (drafts, messages, what the server does
for it, playback). Slices of one track never overlap. Times are whole microseconds of virtual time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from wisp.policy.session import Session
from wisp.sim.cluster import VerifierLoss
from wisp.types import Batch, BatchMember

Event = Mapping[str, Any]


class Span(NamedTuple):
    """Seconds of virtual time."""

    start: float
    end: float


class TracedBatch(NamedTuple):
    """A batch that is done."""

    batch: Batch
    span: Span
    predicted: float | None
    """Seconds that the server expected it to take; None: its scheduler does not ask."""
    num_cached_tokens: int
    """In the KV cache, the batch's own prompt tokens included."""


class TracedSessionSpan(NamedTuple):
    """A session from its first request to its end, or to the end of the run."""

    span: Span
    session: Session


@dataclass(slots=True)
class VerifierTimeline:
    """Of one verifier, in the order in which batches were done."""

    batches: list[TracedBatch] = field(default_factory=list)


@dataclass(slots=True)
class DeviceTimeline:
    """Of one device, each in the order of its times."""

    drafts: list[tuple[Span, int]] = field(default_factory=list)
    """With the number of tokens that were sent."""
    uplink: list[Span] = field(default_factory=list)
    downlink: list[Span] = field(default_factory=list)
    sessions: list[TracedSessionSpan] = field(default_factory=list)


BATCHES, DRAFTING, UPLINK, AT_SERVER, DOWNLINK, PLAYBACK = range(6)
NUM_TRACKS = 6
_TRACKS = {
    DRAFTING: "drafting",
    UPLINK: "requests in flight",
    AT_SERVER: "at the server",
    DOWNLINK: "verdicts in flight",
    PLAYBACK: "sessions and late tokens",
}
"""Of a device."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One run."""

    verifiers: Sequence[VerifierTimeline]
    devices: Mapping[str, DeviceTimeline]
    """By name."""
    losses: Sequence[VerifierLoss]
    end: float
    """When the run ended, seconds."""

    def save(self, path: Path) -> None:
        """Write it. Raises OSError."""
        content = {"displayTimeUnit": "ms", "traceEvents": list(self.events())}
        path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")

    def events(self) -> Iterator[Event]:
        """Everything, track by track."""
        first = 1 + len(self.verifiers)
        process = {name: first + number for number, name in enumerate(self.devices)}
        for pid, verifier in enumerate(self.verifiers, 1):
            yield from _named(pid, f"verifier {pid - 1}", {BATCHES: "batches"})
            yield from (_batch_event(pid, batch) for batch in verifier.batches)
            yield from self._losses(pid)
            yield from self._at_verifier(pid, verifier, process)
        for name, device in self.devices.items():
            yield from _named(process[name], f"device {name}", _TRACKS)
            yield from _device_events(process[name], device)

    def _losses(self, pid: int) -> Iterator[Event]:
        for loss in self.losses:
            if loss.verifier == pid - 1 and loss.at < self.end:
                yield _slice(pid, BATCHES, "lost", Span(loss.at, min(loss.until, self.end)))

    def _at_verifier(self, pid: int, verifier: VerifierTimeline, process: Mapping[str, int]) -> Iterator[Event]:
        """The queue and the cache, and what traced devices wait for there."""
        waits: list[Span] = []
        free: dict[str, float] = {}
        for batch, span, _, num_cached_tokens in verifier.batches:
            yield _counter(pid, "KV cache", span.start, {"tokens": num_cached_tokens})
            for member in batch.members:
                session_id = member.request.session_id
                waits.append(Span(max(member.request.arrival, free.get(session_id, 0.0)), span.start))
                free[session_id] = span.end
                device = process.get(session_id.partition(":")[0])
                if device is not None:
                    yield _slice(device, AT_SERVER, "waiting", waits[-1])
                    yield _slice(device, AT_SERVER, _work(member), span, {"positions": member.num_new_tokens})
        yield from _queue(pid, waits)


def _named(pid: int, name: str, tracks: Mapping[int, str]) -> Iterator[Event]:
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
    for track, label in tracks.items():
        thread = {"ph": "M", "pid": pid, "tid": _tid(pid, track)}
        yield thread | {"name": "thread_name", "args": {"name": label}}
        yield thread | {"name": "thread_sort_index", "args": {"sort_index": track}}


def _tid(pid: int, track: int) -> int:
    """Numbers of threads differ between processes, and none is 0: viewers take such threads for something else."""
    return NUM_TRACKS * pid + track


def _slice(pid: int, track: int, name: str, span: Span, args: Mapping[str, Any] | None = None) -> Event:
    start = _us(span.start)
    # Both ends are rounded, so that neighbours still touch and do not overlap.
    return {"ph": "X", "pid": pid, "tid": _tid(pid, track), "name": name, "ts": start, "dur": _us(span.end) - start} | (
        {"args": args} if args else {}
    )


def _counter(pid: int, name: str, time: float, values: Mapping[str, int]) -> Event:
    return {"ph": "C", "pid": pid, "name": name, "ts": _us(time), "args": values}


def _us(time: float) -> int:
    return round(time * 1e6)


def _batch_event(pid: int, traced: TracedBatch) -> Event:
    members = traced.batch.members
    args: dict[str, Any] = {
        "requests": len(members),
        "positions": traced.batch.num_new_tokens,
        "prompt positions": sum(member.num_prefill_tokens for member in members),
        "taken ms": round((traced.span.end - traced.span.start) * 1e3, 3),
        "members": " ".join(f"{one.request.session_id}+{one.num_new_tokens}" for one in members),
    }
    if traced.predicted is not None:
        args["predicted ms"] = round(traced.predicted * 1e3, 3)
    return _slice(pid, BATCHES, f"batch of {len(members)}", traced.span, args)


def _work(member: BatchMember) -> str:
    if not member.completes:
        return "reading the prompt"
    return "verifying" if member.num_verified else "decoding"


def _queue(pid: int, waits: Iterable[Span]) -> Iterator[Event]:
    """How many requests wait, whenever that changes."""
    changes: dict[int, int] = {}
    for start, end in waits:
        changes[_us(start)] = changes.get(_us(start), 0) + 1
        changes[_us(end)] = changes.get(_us(end), 0) - 1
    length = 0
    for time in sorted(changes):
        length += changes[time]
        yield {"ph": "C", "pid": pid, "name": "queue", "ts": time, "args": {"requests": length}}


def _device_events(pid: int, device: DeviceTimeline) -> Iterator[Event]:
    yield from _drafting(pid, device.drafts)
    for track, spans in ((UPLINK, device.uplink), (DOWNLINK, device.downlink)):
        for span in _one_after_the_other(spans):
            yield _slice(pid, track, "in flight", span)
    for span, session in device.sessions:
        yield _slice(pid, PLAYBACK, "session", span, {"tokens": session.num_output_tokens})
        for late in _one_after_the_other(_late(session)):
            yield _slice(pid, PLAYBACK, "late", late)


def _drafting(pid: int, drafts: Sequence[tuple[Span, int]]) -> Iterator[Event]:
    """A device that vanishes while it drafts begins anew when it is back: what was under way is cut short."""
    for (span, num_tokens), (after, _) in pairwise([*drafts, (Span(inf, inf), 0)]):
        shown = Span(span.start, min(span.end, after.start))
        yield _slice(pid, DRAFTING, "drafting", shown, {"tokens sent": num_tokens})


def _one_after_the_other(spans: Iterable[Span]) -> Iterator[Span]:
    """Each from where the one before ends: nothing overtakes."""
    last = 0.0
    for start, end in spans:
        if end > max(start, last):
            yield Span(max(start, last), end)
            last = end


def _late(session: Session) -> Iterator[Span]:
    """From the deadline of each token that missed it to its arrival."""
    slo, times = session.slo, session.token_times
    if slo is None or not times:
        return
    yield Span(session.started + slo.first_token_s, times[0])
    playback = times[0] + session.settings.startup_time
    for position, time in enumerate(times[1:], 1):
        yield Span(playback + position / slo.tokens_per_s, time)
