"""Drafting on the server: how many tokens, as the load, the cache and the acceptance have it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.test_scheduler import request
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.estimator import VerificationTimeEstimator
from wisp.policy.prices import UNASSISTED
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.server_drafting import ServerDrafting, ServerDraftingSettings, acceptance_of
from wisp.policy.slo_aware import SLOAwareScheduler, SLOAwareSettings
from wisp.types import Batch, BatchMember, OwnDrafts, SessionDemand, VerificationRequest

TARGET = BatchTimeModel(fixed_s=0.03, per_token_s=1e-4, per_token_above_ridge_s=1e-3, ridge_tokens=32.0)
DRAFTER = BatchTimeModel(fixed_s=0.002, per_token_s=1e-5)
FLAT = BatchTimeModel(fixed_s=0.03, per_token_s=1e-4)
PROMPTS = BatchTimeModel(fixed_s=0.05, per_token_s=5e-4)
PERIOD = 0.05
LIMITS = SchedulerLimits(max_sessions=512, max_batch_requests=256, max_prefill_tokens=512)


def drafting(**settings: float) -> ServerDrafting:
    return ServerDrafting(DRAFTER, ServerDraftingSettings(**settings))  # type: ignore[arg-type]


def plain(name: str, most: int = 15, history: int = 257) -> VerificationRequest:
    return replace(request(name, history=history, cached=history - 1), max_own_draft=most)


def batch(what: ServerDrafting, size: int, now: float = 0.0) -> Batch:
    """Plain rounds with what is drafted for them."""
    requests = [what.drafted(plain(str(i)), now) for i in range(size)]
    return Batch(tuple(BatchMember(one, 0, one.num_draft_tokens) for one in requests))


def run(
    what: ServerDrafting,
    size: int,
    acceptance: float = 0.7,
    num_batches: int = 100,
    limits: SchedulerLimits = LIMITS,
    prefill_per_token: float = 0.0,
    fastest: float = 0.0,
    outside: int = 0,
    target: BatchTimeModel = TARGET,
    start: float = 0.0,
) -> list[int]:
    """Batches of `size` plain rounds, with `outside` more that wait for room; what was drafted in each."""
    drafted = []
    for index in range(num_batches):
        now = batch(what, size, start + index * PERIOD)
        what.see(size, outside, size)
        lengths = [one.num_verified or 0 for one in now.members if one.request.drafted_here]
        accepted = round(sum(sum(acceptance ** (i + 1) for i in range(length)) for length in lengths))
        what.observe(now, size + accepted, OwnDrafts(len(lengths), sum(lengths), accepted), ())
        what.choose(target.predict, limits, prefill_per_token, fastest)
        drafted.append(sum(lengths))
    return drafted


def test_plain_rounds_are_drafted_and_what_devices_drafted_is_left_alone() -> None:
    """The server's tokens count as the request's own, up to what the round still asks for."""
    what = drafting()
    found = [what.drafted(one, 0.0) for one in (plain("a"), plain("b", most=1), request("c", draft=2))]
    assert [(one.num_draft_tokens, one.drafted_here) for one in found] == [(5, True), (1, True), (2, False)]
    assert found[0].survival == pytest.approx([0.7 ** (i + 1) for i in range(5)])


def test_drafts_get_shorter_as_batches_grow() -> None:
    """Above the ridge of the batch time a drafted position costs what a decoded one does."""
    alone, crowded = drafting(), drafting()
    run(alone, 1)
    run(crowded, 120)
    assert alone.length > crowded.length


def test_nothing_is_drafted_where_nothing_is_accepted() -> None:
    """But for a token now and then: finding out takes a hundredth of the time."""
    what = drafting()
    run(what, 4, acceptance=0.0)
    assert what.length == 0
    per_probe = DRAFTER.predict(BatchShape().plus(257, 0))
    drafted = run(what, 4, acceptance=0.0, num_batches=1000, start=100 * PERIOD)
    assert set(drafted) == {0, 1}
    assert sum(drafted) * per_probe == pytest.approx(0.01 * 1000 * PERIOD, rel=0.1)


def test_drafting_begins_again_where_drafts_are_accepted_again() -> None:
    """By what the probes find."""
    what = drafting()
    run(what, 4, acceptance=0.0)
    run(what, 4, acceptance=0.9, num_batches=5000, start=100 * PERIOD)
    assert what.length > 0


def test_nothing_is_drafted_where_prompts_take_all_there_is_room_for() -> None:
    """As many tokens are answered per batch whether drafts are made or not, and with them it takes longer."""
    without, with_prompts = drafting(), drafting()
    run(without, 40, target=FLAT)
    run(with_prompts, 40, target=FLAT, prefill_per_token=15.0)
    assert (without.length > 0, with_prompts.length) == (True, 0)


def test_nothing_is_drafted_where_the_drafters_cache_takes_the_room_of_others() -> None:
    """A memory of its own takes nobody's room."""
    apart, shared = drafting(), drafting()
    tight = replace(LIMITS, kv_capacity_tokens=16 * 257)
    run(apart, 16, acceptance=0.5, limits=tight, outside=16)
    run(shared, 16, acceptance=0.5, limits=replace(tight, drafter_kv_share=2.0), outside=16)
    assert (apart.length > 0, shared.length) == (True, 0)


def test_plain_rounds_keep_up_with_the_fastest_session() -> None:
    """Where a batch takes longer than one token of his may, the rounds have to bring more than one."""
    slow, fast = drafting(), drafting()
    run(slow, 150, acceptance=0.8)
    run(fast, 150, acceptance=0.8, fastest=1.0 / TARGET.predict(BatchShape().plus(20, 0)))
    assert (slow.length, fast.length > 0) == (0, True)


def test_longer_drafts_have_to_be_better_by_a_margin() -> None:
    """Or the drafter reads histories again and again; shorter ones have not."""
    eager, settled = drafting(), drafting(margin=1.0)
    for what in (eager, settled):
        run(what, 120)
        assert what.length == 0
        run(what, 4, acceptance=0.5, num_batches=5000, start=100 * PERIOD)
    assert (eager.length > 0, settled.length) == (True, 0)


def test_of_lengths_that_give_about_the_same_the_shortest_is_drafted() -> None:
    """Where prompts bound what is served, say: long drafts make long batches, and more sessions wait for their prompts."""
    what = drafting()
    run(what, 40, acceptance=0.95, target=PROMPTS, prefill_per_token=4.0)
    assert 0 < what.length < 3


def test_what_a_plain_round_takes_and_gives() -> None:
    """A position and a token; with drafts as many more positions, what is accepted of them, and a share of the drafter."""
    what = drafting(max_tokens=2)
    assert what.plain_round() == UNASSISTED
    run(what, 4, acceptance=0.7)
    assert what.length == 2
    found = what.plain_round()
    step = DRAFTER.predict(BatchShape().plus(1, 256))
    assert (found.num_positions, found.num_committed) == (3.0, pytest.approx(1.0 + 0.7 + 0.49, rel=0.05))
    assert found.drafter_s == pytest.approx(2 * step / 4, rel=0.1)


def test_the_luck_of_devices_says_nothing_of_the_servers_drafter() -> None:
    """Of a mixed batch, what its own rounds committed is what it learns from."""
    what = drafting()
    own, other = what.drafted(plain("a"), 0.0), request("b", draft=4)
    mixed = Batch((BatchMember(own, 0, 5), BatchMember(other, 0, 4)))
    for _ in range(200):
        what.observe(mixed, 1 + 5, OwnDrafts(1, 5, 0), ())
    assert what.drafted(plain("a"), 0.0).survival[0] < 0.1


def test_nobody_is_remembered_who_is_gone() -> None:
    """A session that ended while its batch ran is not known again by it."""
    what = drafting()
    gone = batch(what, 1)
    what.observe(gone, 3, OwnDrafts(1, 5, 2), ())
    assert not what._known


def test_a_drafter_that_proposes_nothing_says_nothing_of_its_drafts() -> None:
    """A history may have outgrown it."""
    what = drafting()
    for _ in range(100):
        what.observe(batch(what, 1), 1, OwnDrafts(), ())
    assert what.drafted(plain("a"), 0.0).survival[0] == pytest.approx(0.7)


@pytest.mark.parametrize("acceptance", [0.05, 0.3, 0.7, 0.95])
def test_acceptance_is_found_again_from_accepted_tokens(acceptance: float) -> None:
    """The inverse of a + a^2 + ... + a^k."""
    expected = sum(acceptance ** (i + 1) for i in range(5))
    assert acceptance_of(expected, 5.0) == pytest.approx(acceptance, abs=1e-3)


def test_the_first_draft_of_a_session_reads_its_history() -> None:
    """Until it is forgotten, and has to be read again."""
    what = drafting()
    first = batch(what, 1)
    step, reading = DRAFTER.predict(BatchShape().plus(1, 0)), DRAFTER.predict(BatchShape().plus(257, 0))
    assert what.time_of(first) == pytest.approx(reading + 4 * step)
    what.observe(first, 3, OwnDrafts(1, 5, 2), ("0",))
    assert what.time_of(first) == pytest.approx(5 * step)
    later = replace(first.members[0].request, num_history_tokens=260)
    reading_on = DRAFTER.predict(BatchShape().plus(3, 0))
    assert what.time_of(Batch((BatchMember(later, 0, 5),))) == pytest.approx(reading_on + 4 * step)
    what.forget("0")
    assert what.time_of(first) == pytest.approx(reading + 4 * step)


# In the scheduler


def scheduler(limits: SchedulerLimits = LIMITS) -> SLOAwareScheduler:
    estimator = VerificationTimeEstimator(TARGET)
    return SLOAwareScheduler(limits, estimator, SLOAwareSettings(eager=True), drafting=drafting())


def test_batches_take_as_long_as_both_models_and_the_target_alone_is_learned() -> None:
    """Its drafter's time is known: what is left of a batch's is the target's."""
    what = scheduler()
    before = what.estimator.model
    for index in range(40):
        what.add(replace(plain("a"), round=index, arrival=float(index)))
        found = what.schedule(float(index))
        assert isinstance(found, Batch)
        assert what.drafting is not None
        alone = TARGET.predict(BatchShape.of(found))
        elapsed = alone + what.drafting.time_of(found)
        what.observe(found, index + elapsed, elapsed, 3, OwnDrafts(1, 5, 2))
    assert what.estimator.model.coefficients == pytest.approx(before.coefficients, rel=1e-6)
    assert what.estimator.predict(BatchShape.of(found)) == pytest.approx(elapsed, rel=1e-3)


def test_a_drafted_session_takes_the_room_of_both_caches() -> None:
    """The next one has to wait for it."""
    tight = replace(LIMITS, kv_capacity_tokens=1000)
    for share, expected in ((0.0, {"a", "b"}), (1.0, {"a"})):
        what = scheduler(replace(tight, drafter_kv_share=share))
        for name in "ab":
            what.admit(SessionDemand(name, 300, 100), 0.0)
            what.add(replace(plain(name, history=300), num_cached_tokens=0))
        found = what.schedule(0.0)
        assert isinstance(found, Batch)
        assert {member.request.session_id for member in found.members} == expected


def test_no_price_keeps_the_server_from_finding_out() -> None:
    """Of a drafter that was always wrong so far, a token is verified now and then on a busy engine as well."""
    what, now, num_verified = scheduler(), 0.0, 0
    assert what.drafting is not None
    for index in range(300):
        for number in range(64):
            what.add(replace(plain(str(number)), round=index, arrival=now))
        found = what.schedule(now)
        assert isinstance(found, Batch)
        lengths = [one.num_verified for one in found.members if one.request.drafted_here and one.num_verified]
        num_verified += sum(lengths) if what.drafting.length == 0 else 0
        elapsed = TARGET.predict(BatchShape.of(found)) + what.drafting.time_of(found)
        now += elapsed
        what.observe(found, now, elapsed, len(found.members), OwnDrafts(len(lengths), sum(lengths), 0))
    assert what.drafting.length == 0
    assert what.prices().per_position > 0.1, "the engine has time to spare"
    assert num_verified > 5


def test_who_was_evicted_while_he_waited_enters_with_room_for_his_draft() -> None:
    """In both caches, as at first."""
    what = scheduler(replace(LIMITS, kv_capacity_tokens=1300, drafter_kv_share=1.0))
    for name in "ab":
        what.add(replace(plain(name, history=300), num_cached_tokens=0))
    what.cached("a", 640, 0.0)  # it has grown: whoever entered last has to go
    found = what.schedule(0.0)
    assert isinstance(found, Batch)
    assert what.evictions() == ("b",)
    what.release("a")
    what.schedule(0.1)
    assert what._residency._held["b"] == 2 * (300 + 5)


def test_cancelling_takes_a_drafted_request_out_of_the_queue() -> None:
    """As any other."""
    what = scheduler()
    what.add(plain("a"))
    what.cancel("a")
    assert not isinstance(what.schedule(0.0), Batch)
