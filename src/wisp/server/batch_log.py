"""Writes down every batch, on a thread of its own: the event loop only puts it into a queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from wisp.errors import ConfigError
from wisp.formats.batch_log import LoggedBatch, LoggedMember, header_line
from wisp.server.loop import BatchRecord

_Item = tuple[BatchRecord, float] | None


@contextmanager
def batch_log(path: Path) -> Iterator[Callable[[BatchRecord], None]]:
    """Yields what takes each batch; all of them are on disk afterwards. Raises ConfigError."""
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the batch log {path}: {error.strerror or error}") from error
    with file:
        file.write(header_line())
        file.flush()
        queue: SimpleQueue[_Item] = SimpleQueue()
        thread = threading.Thread(target=_write, args=(file, queue), name="wisp-batch-log", daemon=True)
        thread.start()
        try:
            yield lambda record: queue.put((record, time.process_time()))
        finally:
            queue.put(None)
            thread.join()


def _write(file: IO[str], queue: SimpleQueue[_Item]) -> None:
    """Write until told to end; whatever is waiting is flushed together."""
    while (item := queue.get()) is not None:
        file.write(_logged(*item).line())
        if queue.empty():
            file.flush()


def _logged(record: BatchRecord, cpu_s: float) -> LoggedBatch:
    members = tuple(
        LoggedMember(member.num_new_tokens, member.request.num_cached_tokens, member.completes, member.request.arrival)
        for member in record.batch.members
    )
    drafted = any(member.request.drafted_here for member in record.batch.members)
    return LoggedBatch(record.started, record.elapsed, cpu_s, record.failed, members, record.waited, drafted)
