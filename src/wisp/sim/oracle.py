"""The oracle: WISP+ told what no system can know. Studies show it as a bound; it is not a system that one can run.

Its devices know which tokens of their drafters are going to be accepted. They draft none that is rejected, and of the
others as many as the price-aware rule wants that takes them for certain, wherever a draft pays by itself or, by the true
share of such tokens in the session, on average. In between they decode plainly. Its schedulers know exactly how
long the target takes for any batch, but for its noise; of a drafter beside it they know what WISP+ does.

It is clairvoyant, not optimal: what it knows it uses by WISP+'s own rules, round by round.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from wisp.policy.batch_time import BatchShape, BatchTime, BatchTimeModel
from wisp.policy.controller import DraftedRounds, DraftSoFar, RoundContext
from wisp.policy.estimator import BatchTimeEstimator
from wisp.policy.price_aware import PriceAware
from wisp.policy.session import Session
from wisp.policy.slo_aware import SLOAwareScheduler
from wisp.policy.systems import SYSTEMS, SchedulerTerms, System
from wisp.sim.device import Device
from wisp.sim.script import SessionScript
from wisp.types import DraftStats


class Foresight(PriceAware):
    """The price-aware rule for a draft of which `max_tokens` tokens are going to be accepted, for certain."""

    __slots__ = ()

    def acceptance(self, stats: DraftStats | None, position: int, context: RoundContext) -> float:
        return 1.0

    def keep_drafting(self, draft: DraftSoFar, context: RoundContext) -> bool:
        return super().keep_drafting(draft, _certain(context)) if draft.stats else self.max_tokens > 0

    def pays(self, context: RoundContext) -> bool:
        """Whether such a draft is worth more than plain decoding."""
        return super().keep_drafting(DraftSoFar(), _certain(context))


def _certain(context: RoundContext) -> RoundContext:
    return replace(context, acceptance=1.0, drafted=DraftedRounds())


class OracleDevice(Device):
    """A device that knows what becomes of its drafts."""

    _share_right: float
    """Of the tokens that its drafter would propose in this session."""

    def start(self, script: SessionScript) -> None:
        length = script.num_output_tokens
        self._share_right = sum(script.fate.num_right(start, 1) for start in range(length)) / length
        super().start(script)

    def _draft(self, session: Session, now: float) -> float:
        rules, context = self.rules, session.measured.context
        session.stop_rule, session.settings = rules.stop_rule, rules.settings
        if self._ready <= now:
            told = Foresight(self._num_right(session, 0, rules.settings.max_draft_tokens))
            pays_on_average = rules.stop_rule.keep_drafting(
                DraftSoFar(), replace(context, acceptance=self._share_right)
            )
            session.stop_rule = told if pays_on_average or told.pays(context) else Foresight(0)
            if pays_on_average:
                wrong = self._num_wrong(session)
                session.settings = replace(rules.settings, decode_tokens=wrong, decode_growth=0)
        return super()._draft(session, now)

    def _num_right(self, session: Session, ahead: int, most: int) -> int:
        """Tokens that would be accepted of a draft that begins so far ahead; the text's last one comes undrafted."""
        script, start = self.script, session.num_output_tokens + ahead
        assert script is not None, "drafts come in sessions"
        return script.fate.num_right(start, min(most, max(script.num_output_tokens - 1 - start, 0)))

    def _num_wrong(self, session: Session) -> int:
        """Tokens until one is right."""
        most = self.rules.settings.decode_tokens
        return next((num for num in range(1, most) if self._num_right(session, num, 1)), most)


class ExactEstimator:
    """Knows the time of every batch; what a position costs, which has no exact value, it learns as `learning` does."""

    def __init__(self, hardware: BatchTime, learning: BatchTimeEstimator) -> None:
        self._hardware = hardware
        self._learning = learning

    @property
    def model(self) -> BatchTimeModel:
        return self._learning.model

    def predict(self, shape: BatchShape) -> float:
        """Seconds that it is going to take, without noise."""
        return self._hardware(shape)

    def upper(self, shape: BatchShape) -> float:
        """The same: there is nothing to be careful of."""
        return self._hardware(shape)

    def observe(self, shape: BatchShape, elapsed: float) -> None:
        """Learn the coefficients."""
        self._learning.observe(shape, elapsed)


@dataclass(frozen=True, slots=True)
class Oracle(System):
    """A row that the simulator tells the future."""

    def scheduler_on(self, hardware: BatchTime, terms: SchedulerTerms) -> SLOAwareScheduler:
        """Its scheduler for an engine that takes exactly this time."""
        scheduler = self.scheduler(terms)
        assert isinstance(scheduler, SLOAwareScheduler), "only batch times of SLO-aware schedulers can be exact"
        scheduler.estimate_by(lambda learning: ExactEstimator(hardware, learning))
        return scheduler


_PLUS = SYSTEMS["wisp-plus"]
ORACLE = Oracle(
    **{one.name: getattr(_PLUS, one.name) for one in fields(_PLUS) if one.name != "caption"},
    caption="oracle, not a system: WISP+ that knows which tokens are accepted and how long batches take",
)
