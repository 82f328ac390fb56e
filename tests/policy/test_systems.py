"""The table of systems: names, and what their schedulers are made from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wisp import config
from wisp.config import EdgeConfig, with_drafting, with_system
from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchTimeModel
from wisp.policy.estimator import VerificationTimeEstimator
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.stop_rules import STOP_RULES
from wisp.policy.systems import SYSTEMS, SchedulerTerms, estimator_of

EDGE = EdgeConfig("here:1")


def test_names_of_the_configuration_are_those_of_policy() -> None:
    """The command line offers every row, and no other."""
    assert tuple(SYSTEMS) == config.SYSTEMS
    assert tuple(STOP_RULES) == config.STOP_RULES


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_scheduler_waits_for_nothing_when_nobody_asks(name: str) -> None:
    """A row's scheduler can be made from limits alone, and a drafter where it drafts itself."""
    drafter = BatchTimeModel() if SYSTEMS[name].drafts.on_server else None
    scheduler = SYSTEMS[name].scheduler(SchedulerTerms(SchedulerLimits(), draft_time=drafter))
    assert scheduler.schedule(0.0).time == float("inf")  # type: ignore[union-attr]


def test_a_schedulers_estimator_is_the_targets() -> None:
    """Whether or not a drafter is beside it."""
    for drafter in (None, BatchTimeModel()):
        scheduler = SYSTEMS["wisp-plus"].scheduler(SchedulerTerms(SchedulerLimits(), draft_time=drafter))
        assert isinstance(estimator_of(scheduler), VerificationTimeEstimator)
    assert estimator_of(SYSTEMS["fixed"].scheduler(SchedulerTerms(SchedulerLimits()))) is None


def test_settings_change_a_scheduler_and_unknown_ones_are_refused() -> None:
    """By the names of SLOAwareSettings."""
    make = SYSTEMS["wisp-plus"].scheduler
    changed = make(SchedulerTerms(SchedulerLimits(), settings={"max_skipped": 3.0, "fill": 2.5}))
    assert (changed._settings.fill, changed._settings.max_skipped) == (2.5, 3)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"no scheduler setting 'fil'.*fill"):
        make(SchedulerTerms(SchedulerLimits(), settings={"fil": 1.0}))


def test_a_system_decides_on_the_device() -> None:
    """Stop rule and longest draft; nothing is drafted where the system has no drafts on devices."""
    sled = with_system(EDGE, "sled")
    assert (sled.stop_rule, sled.max_draft_tokens) == ("confidence", SYSTEMS["sled"].max_draft_tokens)
    assert [with_system(EDGE, name).max_draft_tokens for name in ("centralized", "centralized-draft")] == [0, 0]
    assert with_system(EDGE, "wisp-plus") == with_system(EDGE, "wisp-plus-edge")
    with pytest.raises(ConfigError, match="system must be one of centralized"):
        with_system(EDGE, "slow")


def test_options_beside_a_system_go_first() -> None:
    """A threshold that belongs to another rule does not stay."""
    changed = with_drafting(EDGE, "sled", "entropy", None, 3)
    assert (changed.stop_rule, changed.stop_threshold, changed.max_draft_tokens) == ("entropy", None, 3)
    assert with_drafting(EDGE, None, "price", None, None).max_draft_tokens == config.MAX_DRAFT_TOKENS
    assert with_drafting(EDGE, None, None, None, None) == with_system(EDGE, config.DEFAULT_SYSTEM)
    assert with_drafting(EDGE, None, None, None, 3) == replace(EDGE, max_draft_tokens=3)


def test_slo_classes_are_read() -> None:
    """NAME=SPEED,FIRST; the first class is the default unless another is named."""
    given = config.parse_slo_classes(["a=4,2", "b=8.5,1"], None)
    assert [(slo.name, slo.tokens_per_s, slo.first_token_s) for slo in given["slo_classes"]] == [
        ("a", 4.0, 2.0),
        ("b", 8.5, 1.0),
    ]
    assert given["default_slo"] == "a"
    assert config.parse_slo_classes([], None) == {}
    for wrong in ("a", "a=1", "a=1,2,3", "=1,2", "a=0,1", "a=x,1"):
        with pytest.raises(ConfigError, match="SLO class"):
            config.parse_slo_classes([wrong], None)


def test_scheduler_settings_are_read() -> None:
    """NAME=NUMBER."""
    assert config.parse_settings(["fill=2", "max_wait=0.5"]) == {"fill": 2.0, "max_wait": 0.5}
    with pytest.raises(ConfigError, match="NAME=NUMBER, not 'fill'"):
        config.parse_settings(["fill"])
