"""Own images on this machine: error, seconds and memory of every method, of a probe, and of training from scratch.

    python -m bench.own_images FOLDER [FOLDER...] --out FILE [--labels 2,4,10] [--seeds 0-4] [--methods A,B]
    python -m bench.own_images FOLDER --out FILE --changes      what each part of the default recipe brings

FOLDER holds train/<class>/ and test/<class>/. Labels are per class. Every run is a process, with nothing
said but the folder, the labels, the method and the seed; what FILE holds already is not run again. Kept views are
made by the first run of a folder and read by the later ones: their seconds are given apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from interlude_fast.experiment.environment import environment
from interlude_fast.training.checkpoint import write_atomically

METHODS = ("probe", "supervised", "fixmatch", "freematch", "interlude", "scratch-supervised", "scratch-interlude")
SCRATCH = ["--model", "wideresnet", "--steps", "500", "--set", "train.batch=16", "--set", "train.mu=4"]
SCRATCH += ["--set", "data.size=32", "--set", "optim.ema_decay=0.99"]
# name -> what differs from the default recipe
CHANGES: dict[str, list[str]] = {
    "nothing": [],
    "norms in training mode": ["--set", "model.norm=train"],
    "norms frozen, not folded": ["--set", "model.norm=frozen"],
    "head starts fresh": ["--set", "model.head=fresh"],
    "no labels on strong views": ["--set", "augment.label_strong=false"],
    "cut at blocks.3": ["--set", "model.cut=blocks.3", "--steps", "400"],
    "128 px": ["--set", "data.size=128"],
    "front in fp32": ["--set", "data.kept.precision=fp32"],
}


def command(folder: Path, labels: int, method: str, seed: int, run: Path, more: list[str]) -> list[str]:
    given = ["--labels", str(labels), "--seed", str(seed), "--run-dir", str(run), *more]
    program = [sys.executable, "-m", "interlude_fast.cli"]
    if method == "probe":
        return [*program, "probe", str(folder), *given]
    extra = SCRATCH if method.startswith("scratch-") else []
    return [*program, "train", str(folder), "--method", method.removeprefix("scratch-"), *extra, *given]


def measure(folder: Path, per_class: int, method: str, seed: int, more: list[str], cache: Path) -> dict[str, Any]:
    """One run in a process of its own: errors, wall time, the seconds of its steps, the peak of its memory."""
    labels = per_class * sum(entry.is_dir() for entry in (folder / "train").iterdir())
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        line = command(folder, labels, method, seed, run, more)
        began = time.perf_counter()
        child = subprocess.Popen(
            line,
            env={**os.environ, "INTERLUDE_FAST_CACHE": str(cache)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert child.stderr is not None
        said = child.stderr.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            raise SystemExit(f"{' '.join(line)}: {said.strip()[-500:]}")
        scores = json.loads((run / "result.json").read_text())["scores"]["test"]
    making = [
        float(text.rsplit(" in ", 1)[1].split(" s")[0]) for text in said.splitlines() if text.startswith("kept ")
    ]
    return {
        "errors": {name: s["error"] for name, s in scores.items()},
        "seconds": round(seconds, 1),
        "seconds_making_views": round(sum(making), 1),
        "peak_mib": usage.ru_maxrss // 1024,
    }


def summary(cells: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each folder, label count and method: median error and seconds of its seeds."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, cell in cells.items():
        rows.setdefault(name.rpartition(" seed")[0], []).append(cell)
    lines = []
    for name, found in rows.items():
        errors = sorted(cell["errors"].get("ema", 1.0) for cell in found)
        every = ", ".join(f"{100 * error:.1f}" for error in errors)
        seconds = median(cell["seconds"] - cell["seconds_making_views"] for cell in found)
        peak = max(cell["peak_mib"] for cell in found)
        lines.append(f"{name:52} {100 * median(errors):5.1f} %  ({every})  {seconds:4.0f} s  {peak:,} MiB")
    return lines


def numbers(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    return [*range(int(first), int(last) + 1)] if dash else [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", type=numbers, default=[2, 4, 10])
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--changes", action="store_true", help="fixmatch with one part of the recipe changed")
    parser.add_argument("--cache", type=Path, help="where views are kept; default: a folder that is removed again")
    arguments = parser.parse_args()
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"cells": {}}
    cache = arguments.cache or Path(tempfile.mkdtemp())
    names = CHANGES if arguments.changes else {method: [] for method in arguments.methods.split(",")}
    todo = [
        (f, n, m, s) for s in arguments.seeds for f in arguments.folders for n in arguments.labels for m in names
    ]
    try:
        for folder, per_class, name, seed in todo:
            key = f"{folder.name}, {per_class} a class, {name}, seed {seed}"
            if key in found["cells"]:
                continue
            method = "fixmatch" if arguments.changes else name
            found["cells"][key] = measure(folder, per_class, method, seed, names[name], cache)
            found["environment"] = environment()
            write_atomically(arguments.out, (json.dumps(found, indent=1) + "\n").encode())
            print(key, found["cells"][key], flush=True)
    finally:
        if not arguments.cache:
            shutil.rmtree(cache, ignore_errors=True)
    print("\n".join(summary(found["cells"])))


if __name__ == "__main__":
    main()
