"""Every exception WISP raises, as one tree.

WispError
├── UserError                what the person or program that called us must change
│   ├── ConfigError              an option, or a combination of options, that cannot work
│   ├── InvalidRequest           a request field that is wrong or not supported (HTTP 400)
│   ├── ModelError               a model that cannot be served
│   │   ├── UnsupportedModel         its logits are not reproduced by packed verification
│   │   └── ModelTooLarge            it, or the KV pool asked for, exceeds the memory budget
│   └── FormatError              a file on disk that is not what it should be
├── PeerError                what the other end of the wire did, or failed to do
│   ├── ProtocolError            a frame that breaks the protocol
│   ├── VersionMismatch          the two ends speak different protocol versions
│   ├── ModelMismatch            the server serves another model than the device asked for
│   ├── VocabularyMismatch       draft and target do not share one vocabulary
│   ├── AuthenticationFailed     no token, a wrong token or a certificate that does not match
│   ├── ServerBusy               admission refused, with the time after which to try again
│   ├── SessionLost              the server does not know the session (any more): re-open it
│   ├── SessionFenced            a newer epoch of the session was opened on another stream
│   └── ConnectionLost           the stream broke: reconnect and re-open
├── DeviceClosing            this device is being stopped: what runs on it ends
└── EngineError              an engine failed while it computed
"""


class WispError(Exception):
    """Anything that WISP raises on purpose."""


class UserError(WispError):
    """The caller's fault: the message says what to change."""


class ConfigError(UserError):
    """An option, or a combination of options, that cannot work."""


class InvalidRequest(UserError):
    """A request field that is wrong or not supported.

    `field` names it as the caller wrote it, None where no single field is to blame.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ModelError(UserError):
    """A model that cannot be served."""


class UnsupportedModel(ModelError):
    """A model whose logits packed verification does not reproduce."""


class ModelTooLarge(ModelError):
    """A model or KV pool that exceeds the memory budget."""


class FormatError(UserError):
    """A file on disk that is not what it should be."""


class PeerError(WispError):
    """The other end of the wire did, or failed to do, something."""


class ProtocolError(PeerError):
    """A frame that breaks the protocol."""


class VersionMismatch(PeerError):
    """The two ends speak different protocol versions."""


class ModelMismatch(PeerError):
    """The server serves another model than the device asked for."""


class VocabularyMismatch(PeerError):
    """Draft and target do not share one vocabulary."""


class AuthenticationFailed(PeerError):
    """No token, a wrong token, or a certificate that does not match."""


class ServerBusy(PeerError):
    """Admission refused; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SessionLost(PeerError):
    """The server does not know the session (any more): re-open it with its history."""


class SessionFenced(PeerError):
    """A newer epoch of the session was opened on another stream."""


class ConnectionLost(PeerError):
    """The stream broke: reconnect and re-open the sessions."""


class DeviceClosing(WispError):
    """This device is being stopped: what runs on it ends."""


class EngineError(WispError):
    """An engine failed while it computed."""
