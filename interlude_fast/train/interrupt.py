"""Ctrl-C, answered where the state is whole."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupt:
    """While it lasts, the first SIGINT only asks; the loop answers where its state is whole. A second one ends."""

    asked = False

    def __enter__(self) -> Interrupt:
        self.before: Any = None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
