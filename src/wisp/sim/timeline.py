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


class Work(NamedTuple):
    """What is done by a device, or for it."""

    span: Span
    name: str
    args: Mapping[str, int]


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

    drafts: list[Work] = field(default_factory=list)
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
        """Everything, process by process."""
        served: dict[str, list[Work]] = {name: [] for name in self.devices}
        for pid, verifier in enumerate(self.verifiers, 1):
            yield from _named(pid, f"verifier {pid - 1}", {BATCHES: "batches"})
            for batch in verifier.batches:
                yield _batch_event(pid, batch)
                yield _counter(pid, "KV cache", _us(batch.span.start), {"tokens": batch.num_cached_tokens})
            yield from self._losses(pid)
            yield from _queue(pid, _waits(verifier, served))
        for pid, (name, device) in enumerate(self.devices.items(), 1 + len(self.verifiers)):
            yield from _named(pid, f"device {name}", _TRACKS)
            yield from _device_events(pid, device, served[name])

    def _losses(self, pid: int) -> Iterator[Event]:
        for loss in self.losses:
            if loss.verifier == pid - 1 and loss.at < self.end:
                yield _slice(pid, BATCHES, "lost", Span(loss.at, min(loss.until, self.end)))


def _waits(verifier: VerifierTimeline, served: Mapping[str, list[Work]]) -> list[Span]:
    """How long each member of each batch waited for it; `served` takes what was done for the devices that it knows."""
    waits: list[Span] = []
    free: dict[str, float] = {}
    for batch, span, _, _ in verifier.batches:
        for member in batch.members:
            session_id = member.request.session_id
            wait = Span(max(member.request.arrival, free.get(session_id, 0.0)), span.start)
            waits.append(wait)
            free[session_id] = span.end
            work = served.get(session_id.partition(":")[0])
            if work is not None:
                work.append(Work(wait, "waiting", {}))
                work.append(Work(span, _kind(member), {"positions": member.num_new_tokens}))
    return waits


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


def _counter(pid: int, name: str, time_us: int, values: Mapping[str, int]) -> Event:
    return {"ph": "C", "pid": pid, "name": name, "ts": time_us, "args": values}


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


def _kind(member: BatchMember) -> str:
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
        yield _counter(pid, "queue", time, {"requests": length})


def _device_events(pid: int, device: DeviceTimeline, served: Sequence[Work]) -> Iterator[Event]:
    for track, works in ((DRAFTING, device.drafts), (AT_SERVER, sorted(served, key=lambda work: work.span.start))):
        for work in _cut_short(works):
            yield _slice(pid, track, work.name, work.span, work.args)
    for track, spans in ((UPLINK, device.uplink), (DOWNLINK, device.downlink)):
        for span in _one_after_the_other(spans):
            yield _slice(pid, track, "in flight", span)
    for span, session in device.sessions:
        yield _slice(pid, PLAYBACK, "session", span, {"tokens": session.num_output_tokens})
        for late in _one_after_the_other(_late(session)):
            yield _slice(pid, PLAYBACK, "late", late)


def _cut_short(works: Sequence[Work]) -> Iterator[Work]:
    """Each until the next begins: a device that was away begins anew, whatever still goes on for its old connection."""
    for work, after in pairwise([*works, Work(Span(inf, inf), "", {})]):
        yield work._replace(span=Span(work.span.start, min(work.span.end, after.span.start)))


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
