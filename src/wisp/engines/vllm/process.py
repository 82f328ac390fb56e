"""The process that vLLM runs in: started, called, and started again after it died.

Calls and answers are pickled through a socket that only the two processes hold. Both wait in a read that blocks, so
an idle engine costs nothing. When the server ends, the read of the engine's process ends, and so does that process.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from wisp.engines.base import StepMember
from wisp.engines.sampling import Decision
from wisp.engines.vllm import child
from wisp.engines.vllm.settings import VllmSettings
from wisp.errors import EngineError, WispError
from wisp.logs import logger
from wisp.types import GenerationRequest, SessionId

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a loaded engine turned out to be."""

    capacity_tokens: int
    page_tokens: int
    context_length: int
    vocabulary_size: int
    dtype: str
    device: str


class EngineDied(EngineError):
    """The engine's process ended while it was needed; what it had cached is gone."""


class EngineProcess:
    """VllmCore in a process of its own. Raises ModelError and ConfigError when vLLM cannot load the model."""

    def __init__(self, settings: VllmSettings, vocabulary_size: int) -> None:
        self._settings = settings
        self._vocabulary_size = vocabulary_size
        self.epoch = 0
        """Counts the processes that died: what an earlier one had cached is gone."""
        self._start()

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        return self._process.pid

    def ensure_running(self) -> None:
        """Start the process again if it is gone; returns when the model is loaded."""
        if self._process.poll() is not None:
            log.warning("the vLLM process is started again", ended_with=self._process.returncode)
            self._start()

    def open(self, session_id: SessionId, owner: str, request: GenerationRequest) -> int:
        """See VllmCore."""
        return int(self._call("open", session_id, owner, request))

    def step(self, members: Sequence[StepMember]) -> list[Decision | None]:
        """See VllmCore."""
        decisions: list[Decision | None] = self._call("step", members)
        return decisions

    def evict(self, session_id: SessionId) -> None:
        """See VllmCore."""
        self._call("evict", session_id)

    def close(self, session_id: SessionId) -> None:
        """See VllmCore."""
        self._call("close", session_id)

    def shutdown(self) -> None:
        """End the process."""
        child.end(self._process, self._connection)

    def _start(self) -> None:
        self._process, self._connection = child.start("wisp.engines.vllm.process", self._settings)
        try:
            self.facts: EngineFacts = self._exchange((self._settings, self._vocabulary_size))
        except WispError:
            self.shutdown()
            raise

    def _call(self, method: str, *arguments: object) -> Any:
        return self._exchange((method, arguments))

    def _exchange(self, message: object) -> Any:
        """Send a message and wait for the answer; raises what the other side says, or EngineDied."""
        try:
            self._connection.send(message)
            failed, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._connection.close()
            self.epoch += 1
            status = self._process.wait()
            raise EngineDied(
                f"the vLLM process ended with status {status}: sessions are opened again from their histories"
            ) from error
        if failed:
            raise answer
        return answer


def serve(descriptor: int) -> int:
    """The engine's process: load what the first message says, then answer calls until the other side is gone."""
    connection = Connection(descriptor)
    try:
        settings, vocabulary_size = connection.recv()
        from wisp.engines.vllm.load import load

        core, facts = load(settings, vocabulary_size)
    except WispError as error:
        connection.send((True, error))
        return 1
    connection.send((False, facts))
    try:
        while True:
            try:
                method, arguments = connection.recv()
            except EOFError:
                return 0
            connection.send(_answer(getattr(core, method), arguments))
    finally:
        core.shutdown()


def _answer(call: Any, arguments: tuple[object, ...]) -> tuple[bool, object]:
    """The result, or an error that leaves the engine usable; any other ends the process, since its state is unknown."""
    try:
        return False, call(*arguments)
    except WispError as error:
        return True, error
    except Exception:
        traceback.print_exc()
        raise


if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1])))
