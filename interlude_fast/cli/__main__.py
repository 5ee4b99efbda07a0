"""`python -m interlude_fast.cli`."""

from __future__ import annotations

from .main import main

main()
