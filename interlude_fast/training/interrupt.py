"""Ctrl-C, and a job's SIGTERM, answered where the state is whole."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupt:
    """While it lasts, the first SIGINT only asks; the loop answers where its state is whole. A second one ends.

    Args:
        of_several: whether this is one process of a job. Then SIGTERM, with which torchrun ends a job, asks too,
            and a second signal is as the first: torchrun passes on a Ctrl-C that has reached its processes
            already, and kills them where they do not end.
    """

    asked = False

    def __init__(self, of_several: bool = False) -> None:
        self.of_several = of_several

    def __enter__(self) -> Interrupt:
        self.before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *([signal.SIGTERM] if self.of_several else [])):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and not self.of_several:
            raise KeyboardInterrupt
        self.asked = True
