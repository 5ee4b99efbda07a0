"""Python processes that work for this one: started without its main module, deaf to Ctrl-C, done when it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import BinaryIO


def start_process(module: str, threads: int) -> subprocess.Popen[bytes]:
    """A process that calls serve() of `module`, with pipes at its standard input and output.

    It imports no more than that module: not the caller's main module, as multiprocessing would, which unguarded
    scripts do not survive.

    Args:
        threads: that numerical libraries may start in it.

    Raises:
        OSError: there is no process to be had.
    """
    start = f"import sys; sys.path[:] = {sys.path!r}; import {module} as worker; worker.serve()"
    env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))}
    # Ctrl-C is for the parent. The child inherits this from its first instruction on, before any import.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", start], stdin=pipe, stdout=pipe, env=env)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take_output() -> BinaryIO:
    """Standard output for the answers alone: whatever a library prints goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers
