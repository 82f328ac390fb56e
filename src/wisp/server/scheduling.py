"""Which scheduler a server runs, and what it knows of its engine's batch times when it starts."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from wisp.calibration.measured import MeasuredBatchTime
from wisp.calibration.sweep import SweepSettings
from wisp.config import ServerConfig
from wisp.engines.base import TargetEngine
from wisp.engines.co_located import CoLocatedTarget
from wisp.engines.timed import TimedTarget
from wisp.errors import ConfigError, FormatError
from wisp.formats.calibration import Calibration
from wisp.logs import logger
from wisp.policy.batch_time import BatchTimeModel
from wisp.policy.scheduler import Scheduler, SchedulerLimits
from wisp.policy.systems import SYSTEMS, Drafts, SchedulerTerms, System

log = logger(__name__)

AT_START = SweepSettings(
    time_budget=14.0, num_shapes=48, repeats=3, max_requests=16, max_cached_tokens=1024, max_chunk_tokens=128
)
"""What a server measures before it takes devices: enough to begin with, the batches that run teach it the rest."""


def checked_system(config: ServerConfig) -> System:
    """The system's row. Raises ConfigError where the configuration does not go with it."""
    system = SYSTEMS[config.system]
    if config.profile is not None and not system.estimates:
        raise ConfigError(f"the system {config.system} asks for no batch times: leave the profile out")
    if config.scheduler_settings and not system.estimates:
        raise ConfigError(f"the system {config.system} serves first come, first served: it has no scheduler settings")
    if system.drafts is Drafts.ON_SERVER and config.draft is None:
        raise ConfigError(f"the system {config.system} drafts on the server: name a draft model with --draft")
    if config.draft is not None and not system.drafts.on_server:
        raise ConfigError(f"the system {config.system} does not draft on the server: give --draft to `wisp edge`")
    return system


def scheduler_limits(engine: TargetEngine, config: ServerConfig) -> SchedulerLimits:
    """What a batch may hold on this engine."""
    return SchedulerLimits(
        max_sessions=config.max_sessions,
        max_batch_requests=config.max_batch_requests,
        max_batch_tokens=config.max_batch_tokens,
        max_prefill_tokens=config.max_prefill_tokens,
        kv_capacity_tokens=engine.kv_capacity_tokens,
        kv_page_tokens=engine.kv_page_tokens,
    )


def build_scheduler(engine: TargetEngine, config: ServerConfig) -> Scheduler:
    """The scheduler of the configured system; the engine must be idle. Raises ConfigError and FormatError."""
    system = checked_system(config)
    terms = SchedulerTerms(
        scheduler_limits(engine, config),
        batch_time_model(engine, config) if system.estimates else BatchTimeModel(),
        engine.measured_draft_time() if isinstance(engine, CoLocatedTarget) else None,
        config.scheduler_settings,
    )
    return system.scheduler(terms)


def batch_time_model(engine: TargetEngine, config: ServerConfig) -> BatchTimeModel:
    """From the profile, measured now, or rough; of emulated hardware what it does not know itself. Raises FormatError."""
    if isinstance(engine, TimedTarget) and isinstance(engine.batch_time, MeasuredBatchTime):
        return engine.batch_time.estimated
    card = engine.card
    if config.profile is not None:
        calibration = Calibration.load(config.profile)
        calibration.require(card.model_id, card.dtype, card.device, path=config.profile)
        return calibration.model
    return _at_start(engine, config) if config.calibrate else BatchTimeModel()


def _at_start(engine: TargetEngine, config: ServerConfig) -> BatchTimeModel:
    """What an earlier start measured, or what this one does: kept for the next."""
    path = kept_profile(engine, config)
    if config.recalibrate or not path.exists():
        return _measured(engine, path)
    try:
        found = Calibration.load(path)
    except FormatError as error:
        log.warning("batch times are measured anew", reason=str(error))
        return _measured(engine, path)
    log.info("batch times of an earlier start", profile=str(path))
    return found.model


def kept_profile(engine: TargetEngine, config: ServerConfig) -> Path:
    """Where a start keeps what it measured: by model, number format and device."""
    card, model = engine.card, config.target.model
    source = str(Path(model).resolve()) if Path(model).exists() else model
    key = sha256("\0".join((source, card.dtype, card.device, str(config.target.threads))).encode()).hexdigest()
    return config.security.state_dir / "batch-times" / f"{key[:16]}.json"


def _measured(engine: TargetEngine, path: Path) -> BatchTimeModel:
    from wisp.calibration.app import calibrate

    log.info("measuring batch times", seconds=AT_START.time_budget)
    try:
        found = calibrate(engine, AT_START)
    except FormatError as error:
        log.warning("batch times could not be measured, they will be learned", reason=str(error))
        return BatchTimeModel()
    log.info(
        "batch times measured", shapes=len(found.samples), error=found.held_out.mean, repeat_error=found.repeats.mean
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    except (OSError, FormatError) as error:
        log.warning("batch times cannot be kept for the next start", reason=str(error))
    return found.model
