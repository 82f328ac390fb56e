"""What a server and a device are told to do: frozen, validated, printable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wisp.errors import ConfigError
from wisp.types import SLO, AcceptanceRule

DEFAULT_PORT = 7600
DEFAULT_EDGE_PORT = 7601
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})

DEFAULT_SLO_CLASSES = (SLO("fast", 12.0, 2.0), SLO("normal", 8.0, 3.0), SLO("relaxed", 4.0, 5.0))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model to load, and how."""

    model: str
    """Folder or hub name."""
    name: str | None = None
    """What the other end knows it by; None: the hub name, or the folder's own name."""
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 1
    """More than one thread pays only on cores that nobody else uses: waiting at barriers costs more than it gives."""
    memory_gib: float | None = None
    """For weights and KV cache; None: what is free."""
    kv_gib: float | None = None
    """For the KV cache; None: derived from what the weights leave."""
    max_context: int | None = None
    """Tokens; None: the model's own."""
    batch_invariant: bool = False
    engine: str = "transformers"
    """Of a target: one of ENGINES."""
    tensor_parallel: int = 1
    """GPUs that vLLM splits a target over."""
    quantization: str | None = None
    """vLLM's name of a method; None: what the checkpoint says."""

    def __post_init__(self) -> None:
        _require(self.engine in ENGINES, f"engine must be one of {', '.join(ENGINES)}, not {self.engine!r}")
        _require(self.tensor_parallel >= 1, f"tensor_parallel must be at least 1, not {self.tensor_parallel}")
        plain = self.tensor_parallel == 1 and self.quantization is None
        _require(plain or self.engine == "vllm", "--tensor-parallel and --quantization are for --engine vllm")
        _require(self.threads >= 1, f"threads must be at least 1, not {self.threads}")
        for field_name in ("memory_gib", "kv_gib", "max_context"):
            value = getattr(self, field_name)
            _require(value is None or value > 0, f"{field_name} must be positive, not {value}")
        _require(self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")


SYSTEMS = (
    *("centralized", "centralized-slo", "centralized-draft", "sled", "sled-fcfs", "fixed"),
    *("wisp", "wisp-no-predictor", "wisp-no-estimator", "wisp-no-scheduler", "wisp-plus", "wisp-plus-edge"),
)
"""The rows of policy/systems.py."""
ENGINES = ("transformers", "vllm")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEFAULT_SYSTEM = "wisp-plus"
"""Of the commands, where none is named."""
STOP_RULES = ("fixed", "confidence", "predicted", "entropy", "price")
"""The rows of policy/stop_rules.py."""
MAX_DRAFT_TOKENS = 12
"""Per round, where a rule ends drafts."""


@dataclass(frozen=True, slots=True)
class SecurityConfig:
    """How the wire is protected; plain text is for loopback, elsewhere only with `insecure`."""

    insecure: bool = False
    state_dir: Path = field(default_factory=lambda: Path.home() / ".local" / "state" / "wisp")
    """Holds the private CA, its certificates and the token that the first start off loopback makes."""
    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = None
    """mTLS: devices must present a certificate of this CA."""
    tokens_file: Path | None = None
    """One `token [credential name]` per line; otherwise WISP_TOKENS, otherwise the state directory's."""
    server_names: tuple[str, ...] = ()
    """Further names and addresses that devices reach the server by; they go into the certificate it makes."""

    def __post_init__(self) -> None:
        paired = (self.certificate is None) == (self.private_key is None)
        _require(paired, "a certificate and its private key go together: give both or neither")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What `wisp serve` runs."""

    target: ModelConfig
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0: any free one."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    max_sessions: int = 256
    max_batch_requests: int = 64
    max_batch_tokens: int = 2048
    max_prefill_tokens: int = 512
    max_draft_tokens: int = 32
    idle_timeout: float = 600.0
    """Seconds after which a session whose device has gone is forgotten."""
    drain_timeout: float = 30.0
    """Seconds that running rounds get after SIGTERM."""
    system: str = "fixed"
    """One of SYSTEMS: its scheduler runs here."""
    draft: ModelConfig | None = None
    """A drafter beside the target, for systems that draft on the server."""
    profile: Path | None = None
    """What `wisp calibrate` wrote, for schedulers that ask for batch times; None: they are measured at the start."""
    calibrate: bool = True
    """False: without a profile, begin with rough batch times and learn from the batches that run."""
    recalibrate: bool = False
    """Measure even where an earlier start has kept what it measured."""
    scheduler_settings: Mapping[str, float] = field(default_factory=dict)
    """Fields of SLOAwareSettings (policy/slo_aware.py) that are to differ from the system's own."""
    slo_classes: tuple[SLO, ...] = DEFAULT_SLO_CLASSES
    default_slo: str = "normal"
    replay: Path | None = None
    """Emulated: verdicts are those of this trace (of `wisp trace`); the target's weights are not needed."""
    batch_times: str | None = None
    """Emulated: batches last as long as this file (of `wisp calibrate`), or shipped profile, says."""
    kv_tokens: int | None = None
    """Emulated: tokens that the KV cache holds; None: no limit."""
    metrics_port: int | None = None
    """Of a Prometheus endpoint; None: none, 0: any free one. Whoever reaches it may read it."""
    metrics_host: str = "127.0.0.1"
    batch_log: Path | None = None
    """Where to write down every batch."""

    def __post_init__(self) -> None:
        both = (self.replay is None) == (self.batch_times is None)
        _require(both, "an emulated target needs a trace and batch times: give --replay and --batch-times, or neither")
        unlimited = self.kv_tokens is None
        _require(unlimited or self.replay is not None, "--kv-tokens is for emulated targets; others take --kv-gib")
        alone = self.replay is None or self.draft is None
        _require(alone, "an emulated target has no drafter beside it: leave --draft out, or run a real target")
        _require(self.kv_tokens is None or self.kv_tokens >= 1, f"kv_tokens must be at least 1, not {self.kv_tokens}")
        _check_port(self.port)
        for name in ("max_sessions", "max_batch_requests", "max_batch_tokens", "max_prefill_tokens"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(self.max_draft_tokens >= 0, f"max_draft_tokens must not be negative, not {self.max_draft_tokens}")
        _require(self.idle_timeout > 0.0, f"idle_timeout must be positive, not {self.idle_timeout}")
        _require(self.drain_timeout >= 0.0, f"drain_timeout must not be negative, not {self.drain_timeout}")
        _check_system(self.system)
        if self.metrics_port is not None:
            _check_port(self.metrics_port)
        known = [slo.name for slo in self.slo_classes]
        _require(self.default_slo in known, f"default_slo must be one of {', '.join(known)}, not {self.default_slo!r}")

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK_HOSTS


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """What `wisp edge` runs."""

    server: str
    """HOST:PORT of the verification server."""
    draft: ModelConfig | None = None
    """None: the n-gram drafter."""
    host: str = "127.0.0.1"
    port: int = DEFAULT_EDGE_PORT
    max_draft_tokens: int = 4
    """Drafted per round; 0: plain decoding on the server."""
    rule: str = "coupled"
    stop_rule: str = "fixed"
    """When a draft ends before `max_draft_tokens`: one of STOP_RULES."""
    stop_threshold: float | None = None
    """Of confidence, predicted and entropy; None: the rule's own, or the predictor's."""
    predictor: Path | None = None
    """What `wisp train` made for the pair."""
    token: str | None = None
    ca: Path | None = None
    """PEM file of the CA to trust."""
    ca_fingerprint: str | None = None
    """SHA-256 of the server's CA certificate, hex: pinned instead of `ca`."""
    certificate: Path | None = None
    private_key: Path | None = None
    insecure: bool = False
    api_key: str | None = None
    """Asked of clients of the local endpoint; None: nobody is asked."""
    slo: str | None = None
    """Class of requests that name none; None: the server's default."""
    connect_timeout: float = 10.0
    round_timeout: float = 60.0
    """Seconds without a verdict after which the stream is taken for dead."""
    emulated_draft_time: float = 0.0
    """Seconds per drafted token added, to act as a slower device; labelled wherever results show."""
    emulated_rtt: float = 0.0
    """Seconds of network round trip added; labelled wherever results show."""

    def __post_init__(self) -> None:
        host, _, port = self.server.rpartition(":")
        usable = bool(host) and port.isdigit() and 0 < int(port) < 1 << 16
        _require(usable, f"server must be HOST:PORT, not {self.server!r}")
        _check_port(self.port)
        _require(self.max_draft_tokens >= 0, f"max_draft_tokens must not be negative, not {self.max_draft_tokens}")
        rules = tuple(AcceptanceRule)
        _require(self.rule in rules, f"rule must be {' or '.join(rules)}, not {self.rule!r}")
        known = ", ".join(STOP_RULES)
        _require(self.stop_rule in STOP_RULES, f"stop_rule must be one of {known}, not {self.stop_rule!r}")
        able = self.stop_rule != "predicted" or self.predictor is not None
        _require(able, "the stop rule predicted needs a predictor; entropy and price do without one")

    @property
    def server_on_loopback(self) -> bool:
        return self.server.rpartition(":")[0].strip("[]") in LOOPBACK_HOSTS


def with_system(config: EdgeConfig, name: str) -> EdgeConfig:
    """The device's part of a system: its stop rule, or no drafts at all. Raises ConfigError."""
    from wisp.policy.systems import SYSTEMS as ROWS

    _check_system(name)
    row = ROWS[name]
    return replace(
        config,
        max_draft_tokens=row.max_draft_tokens if row.drafts.on_devices else 0,
        stop_rule=row.stop_rule,
        stop_threshold=row.threshold,
    )


def with_drafting(
    config: EdgeConfig, system: str | None, stop_rule: str | None, threshold: float | None, max_tokens: int | None
) -> EdgeConfig:
    """A system's drafting, with what is given beside it in its place; the default system's where nothing is.

    Raises ConfigError.
    """
    if system is None and stop_rule is None and threshold is None and max_tokens is None:
        system = DEFAULT_SYSTEM
    if system is not None:
        config = with_system(config, system)
    if stop_rule is not None and stop_rule != config.stop_rule:
        config = replace(config, stop_rule=stop_rule, stop_threshold=None)
        if stop_rule != "fixed" and system is None:
            config = replace(config, max_draft_tokens=MAX_DRAFT_TOKENS)
    if threshold is not None:
        config = replace(config, stop_threshold=threshold)
    return config if max_tokens is None else replace(config, max_draft_tokens=max_tokens)


def parse_settings(texts: Sequence[str]) -> dict[str, float]:
    """From NAME=VALUE. Raises ConfigError."""
    settings = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            settings[name] = float(value)
        except ValueError:
            raise ConfigError(f"a scheduler setting is NAME=NUMBER, not {text!r}") from None
    return settings


def parse_slo_classes(texts: Sequence[str], default: str | None) -> dict[str, Any]:
    """Fields of ServerConfig from NAME=TOKENS_PER_S,FIRST_TOKEN_S; the default is the first. Raises ConfigError."""
    classes = tuple(map(_parse_slo_class, texts))
    fields: dict[str, Any] = {"slo_classes": classes} if classes else {}
    if default is not None or classes:
        fields["default_slo"] = default or classes[0].name
    return fields


def _parse_slo_class(text: str) -> SLO:
    name, _, numbers = text.partition("=")
    try:
        speed, first_token = map(float, numbers.split(","))
    except ValueError:
        raise ConfigError(f"an SLO class is NAME=TOKENS_PER_S,FIRST_TOKEN_S, not {text!r}") from None
    _require(
        bool(name) and speed > 0.0 and first_token > 0.0, f"an SLO class has a name and positive numbers: {text!r}"
    )
    return SLO(name, speed, first_token)


def _check_system(name: str) -> None:
    _require(name in SYSTEMS, f"system must be one of {', '.join(SYSTEMS)}, not {name!r}")


def _check_port(port: int) -> None:
    _require(0 <= port < 1 << 16, f"port must be in 0..65535, not {port}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
