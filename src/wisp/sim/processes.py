"""Processes that take over a part of the work."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context


@contextmanager
def processes(number: int) -> Iterator[Executor]:
    """So many of them; they end at once where the work is given up."""
    # Forked children would inherit the progress display's thread and its locks.
    with ProcessPoolExecutor(number, get_context("spawn"), initializer=_leave_interrupts_to_parent) as pool:
        try:
            yield pool
        except BaseException:
            # What they are at may take minutes, and will be run again.
            for child in active_children():
                child.terminate()
            raise


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
