"""Whatever a device does and whenever frames are read: rounds are answered once, and the output is the target's."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import generate
from tests.server.desk import STEP_TIME, Desk, Device, desk
from tests.server.device import PROMPT, decode, draft, generation
from tests.virtual_time import run
from wisp.policy.scheduler import SchedulerLimits
from wisp.protocol import wisp_pb2 as pb
from wisp.types import DecodeRequest, DraftRequest

SESSION = 5
MAX_TOKENS = 60
OUTPUT = generate(generation(max_tokens=MAX_TOKENS))


@dataclass
class Model:
    """A device that commits a verdict where round and length are known to it, and only then."""

    desk: Desk
    device: Device
    history: list[int] = field(default_factory=lambda: list(PROMPT))
    epoch: int = 1
    round: int = 0
    asked: dict[int, DraftRequest | DecodeRequest] = field(default_factory=dict)
    answers: dict[int, list[bytes]] = field(default_factory=dict)
    replayed: set[int] = field(default_factory=set)
    finished: bool = False

    def open(self) -> None:
        self.device.open(SESSION, generation(max_tokens=MAX_TOKENS, output=self.history[len(PROMPT) :]), self.epoch)

    def ask(self, request: DraftRequest | DecodeRequest) -> None:
        self.round = request.round
        self.asked[request.round] = request
        self.device.ask(SESSION, request, self.epoch)

    def replay(self, number: int) -> None:
        if number in self.asked:
            self.replayed.add(number)
            self.device.ask(SESSION, self.asked[number], self.epoch)

    def reopen(self, other_stream: bool, orphaned_first: bool) -> None:
        """As after a lost stream, or one that only seems to be."""
        self.read()
        if self.finished:
            return
        if orphaned_first:
            self.desk.registry.orphan(self.device.stream)
        if other_stream or orphaned_first:
            self.device = self.desk.device()
        self.epoch += 1
        self.asked.clear()
        self.answers.clear()
        self.replayed.clear()
        self.open()

    def read(self) -> None:
        for data in self.device.take():
            frame = pb.ServerFrame.FromString(data)
            kind = frame.WhichOneof("body")
            assert kind in {"opened", "verdict"}, frame
            if kind == "verdict" and frame.verdict.epoch == self.epoch:
                self.answers.setdefault(frame.verdict.round, []).append(data)
                self._commit(frame.verdict)

    def _commit(self, verdict: pb.Verdict) -> None:
        request = self.asked[verdict.round]
        if verdict.num_committed != len(self.history):
            return
        if isinstance(request, DraftRequest):
            self.history += [drafted.token for drafted in request.tokens[: verdict.num_accepted]]
        if verdict.HasField("next_token"):
            self.history.append(verdict.next_token)
        self.finished = self.finished or verdict.finish_reason != pb.FINISH_REASON_NONE
        assert self.history[len(PROMPT) :] == OUTPUT[: len(self.history) - len(PROMPT)]

    def check_answers(self) -> None:
        """Every round ended exactly once; what was replayed was answered with the same frames."""
        for number, request in self.asked.items():
            counted = Counter(self.answers.get(number, []))
            finals = [data for data in counted if pb.ServerFrame.FromString(data).verdict.final]
            assert len(finals) == 1, (number, request, self.answers)
            if number not in self.replayed:
                assert set(counted.values()) == {1}


actions = st.one_of(
    st.tuples(st.just("draft"), st.integers(1, 4), st.integers(0, 2)),
    st.tuples(st.just("decode"), st.integers(1, 9), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("replay"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("wait"), st.sampled_from([0, 1, 3, 7]), st.just(0)),
    st.tuples(st.just("read"), st.just(0), st.just(0)),
    st.tuples(st.just("reopen"), st.integers(0, 1), st.integers(0, 1)),
    st.tuples(st.just("other"), st.integers(1, 5), st.just(0)),
)


@settings(max_examples=200)
@given(st.lists(actions, max_size=25), st.sampled_from([1000, 90, 4]))
def test_the_output_is_the_targets_under_any_interleaving(script: list[tuple[str, int, int]], prefill: int) -> None:
    """Drafts, plain rounds, cancels, replays, lost streams and another device's load, read late or at once."""
    limits = SchedulerLimits(max_prefill_tokens=prefill, kv_capacity_tokens=100, max_batch_tokens=20)

    async def main() -> None:
        async with desk(limits, max_history=90) as it:
            model, other = Model(it, it.device()), it.device()
            await other.opened(1, generation(max_tokens=70))
            other_round = 0
            model.open()
            for name, one, two in script:
                if name == "draft":
                    model.ask(draft(model.round + 1, model.history, one, two))
                elif name == "decode":
                    model.ask(decode(model.round + 1, len(model.history), one))
                elif name == "cancel":
                    model.device.cancel(SESSION, model.round - one, model.epoch)
                elif name == "replay":
                    model.replay(model.round - one)
                elif name == "wait":
                    await asyncio.sleep(one * STEP_TIME / 2)
                elif name == "read":
                    model.read()
                elif name == "reopen":
                    model.reopen(bool(one), bool(two))
                else:
                    other_round += 1
                    session = it.registry.get(other.stream, 1, 1)
                    session.on_request(decode(other_round, session.num_tokens, one))
            await asyncio.sleep(500 * STEP_TIME)
            model.read()
            model.check_answers()
            assert len(model.history) == it.registry.get(model.device.stream, SESSION, model.epoch).num_tokens
            assert it.target.history(f"me/{SESSION:016x}") == tuple(model.history)
            assert not it.registry.busy

    run(main())
