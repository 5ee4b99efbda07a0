"""Makes results and tables of what bench/gpu_session.sh left:
`python -m bench.collect [ARCHIVE...] [--into FOLDER] [--write]`.

Every archive (results.tgz, or a folder of its content) must be of the same commit and device. Their parts become
<date>-<device>-<part>.json in the folder of results; the GPU table is made of all such files there, the newest of
each part, printed, and with --write put between the markers of docs/performance.md and README.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.tables import Found, short_table, table
from interlude_fast.training.checkpoint import write_atomically

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- gpu: made by bench/collect.py -->", "<!-- gpu: end -->"
DOCUMENTS = {"docs/performance.md": table, "README.md": short_table}
NAME = re.compile(r"(?P<date>\d{4}-\d\d-\d\d)-(?P<device>[a-z0-9]+)-(?P<part>.+)\.json")
STEP = re.compile(r"(?P<step>\S+) +(?P<state>ok|stopped|FAILED|left out) +(?P<seconds>\d+) s  ?(?P<said>.*)")
POINTS = 60  # of a run's curves that are kept
COUNTERS = {  # of a kernel, in ncu's names
    "gpu__time_duration.sum": "time",
    "dram__bytes.sum": "memory bytes",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory % of peak",
    "lts__t_sector_hit_rate.pct": "L2 hits %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM % of peak",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "launch__registers_per_thread": "registers",
    "smsp__inst_executed_op_local.sum": "local memory instructions",
}


class Refused(Exception):
    """One line that says why nothing was collected."""


@dataclass
class Session:
    """What one archive holds. parts: by name, as they are written."""

    place: Path
    commit: str = "unknown"
    date: str = ""
    device: str = ""
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)


def files_of(place: Path) -> dict[str, bytes]:
    """Files of an archive or folder by their path below `results/`."""
    if place.is_dir():
        inside = place / "results" if (place / "results").is_dir() else place
        return {str(p.relative_to(inside)): p.read_bytes() for p in inside.rglob("*") if p.is_file()}
    try:
        with tarfile.open(place) as archive:
            found = {m.name.partition("/")[2]: archive.extractfile(m) for m in archive if m.isfile()}
            return {name: file.read() for name, file in found.items() if file}
    except (OSError, tarfile.TarError, EOFError) as error:
        raise Refused(f"{place} cannot be read: {error}") from None


def device_slug(passport: dict[str, Any]) -> str:
    """`NVIDIA H200, compute capability 9.0, 140 GiB` -> `h200`; `cpu` where there is no GPU."""
    if not passport.get("gpus"):
        return "cpu"
    name = passport["gpus"][0].partition(",")[0].lower()
    return re.sub(r"[^a-z0-9]+", "", re.sub(r"nvidia|geforce|graphics|tesla|generation", "", name)) or "gpu"


def without_places(text: str) -> str:
    """Absolute paths by their last part alone: they tell of one machine's folders."""
    return re.sub(r"(?<![\w.])(?:/[\w.\-]+)+/(?=[\w.\-])", "", text)


def thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """POINTS of a curve at most, the last one always."""
    every = max(1, -(-len(rows) // POINTS))
    return [row for i, row in enumerate(rows) if i % every == 0 or i == len(rows) - 1]


def images_of(split: dict[str, Any]) -> dict[str, Any]:
    """Of split.json: how many images each part has, and the hash of them all."""
    counts = {part: len(split[part]["index"]) for part in ("labeled", "validation", "test")}
    unlabeled = sum(last - first + 1 for first, last in split["unlabeled"])
    return {**counts, "unlabeled": unlabeled, "hash": split["data"][:16]}


def run_part(files: dict[str, bytes], session: dict[str, Any]) -> dict[str, Any]:
    """A real run: its scores, its speed and its curves. One that was cut off has no scores."""
    lines = files.get("metrics.jsonl", b"").decode().splitlines()
    metrics = [json.loads(line) for line in lines if line.endswith("}")]
    logged = [row for row in metrics if "loss" in row]
    judged: dict[int, dict[str, Any]] = {}
    for row in metrics:
        if "loss" not in row:
            judged.setdefault(row["step"], {}).update(row)
    scores = json.loads(files["result.json"]) if "result.json" in files else {}
    passport = json.loads(files["passport.json"])
    kept = ("loss", "mask_rate", "steps_per_second", "position")
    wanted = re.compile(r"test/\w+/error|pseudo_labels/.*")
    return {
        "date": session["date"],
        "commit": session["commit"],
        "command": without_places(" ".join(["interlude-fast", *passport.pop("command", ["", "train"])[1:]])),
        "passport": passport,
        "config": without_places(files.get("config.yaml", b"").decode()),
        "data": session.get("data", ""),
        "images": images_of(json.loads(files["split.json"])) if "split.json" in files else {},
        "finished": bool(scores),
        "steps": max((row["step"] for row in metrics), default=0),
        "steps_per_second": median(row["steps_per_second"] for row in logged) if logged else None,
        "seconds": scores.get("seconds"),
        "last": scores.get("last", {}),
        "best_on_test": scores.get("best_on_test", {}),
        "curve": thinned([{"step": r["step"], **{k: r[k] for k in kept if k in r}} for r in logged]),
        "evaluations": thinned(
            [{"step": s, **{k: v for k, v in row.items() if wanted.fullmatch(k)}} for s, row in judged.items()]
        ),
    }


def ncu_part(text: str) -> list[dict[str, Any]]:
    """ncu's raw page as rows, a kernel each, with those of COUNTERS that are there; its second line has units."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    if not rows:
        return []
    units, made = rows[0], []
    for row in rows[1:]:
        found = {what: f"{row[c]} {units[c]}".strip() for c, what in COUNTERS.items() if row.get(c)}
        made.append({"name": row.get("Kernel Name", "")[:200], "grid": row.get("Grid Size", ""), **found})
    return made


def read(place: Path) -> Session:
    files = files_of(place)
    if "session.json" not in files:
        raise Refused(f"{place} is no archive of bench/gpu_session.sh: session.json is missing")
    about = json.loads(files["session.json"])
    if about["commit"] == "unknown":
        raise Refused(f"{place} does not say of which commit it is: COMMIT=id for bench/gpu_session.sh")
    session = Session(place, about["commit"], about["date"])
    for name, content in files.items():
        stem = name.removesuffix(".json")
        if "/" in name or name == "session.json" or stem == name:
            continue
        part = json.loads(content)
        session.parts[stem] = {"commit": session.commit, **part, "command": without_places(part["command"])}
    for folder in sorted({name.partition("/")[0] for name in files if name.endswith("/passport.json")}):
        inside = {n.partition("/")[2]: c for n, c in files.items() if n.startswith(f"{folder}/")}
        session.parts[folder] = run_part(inside, about)
    devices = {device_slug(part["passport"]) for part in session.parts.values()} | {device_slug(about)}
    if len(devices) > 1:
        raise Refused(f"{place} holds results of several devices: {', '.join(sorted(devices))}")
    (session.device,) = devices
    for part, content in session.parts.items():
        if content["commit"] != session.commit:
            raise Refused(f"{place}: {part} is of commit {content['commit']}, the session of {session.commit}")
    summary = without_places(files.get("summary.txt", b"").decode())
    session.steps = [m.groupdict() for line in summary.splitlines() if (m := STEP.match(line))]
    if rows := ncu_part(files.get("ncu.csv", b"").decode()):
        session.parts["ncu"] = {**about, "command": "bench/gpu_session.sh OUT ncu", "rows": rows}
    failed = [step["step"] for step in session.steps if step["state"] in ("FAILED", "stopped")]
    logs = {name: files.get(f"{name}.log", b"").decode(errors="replace")[-4000:] for name in failed}
    account = {"steps": session.steps, "failed": {name: without_places(log) for name, log in logs.items()}}
    session.parts["session"] = {**about, "command": "bench/gpu_session.sh OUT " + about["parts"], **account}
    return session


def together(sessions: Sequence[Session]) -> dict[str, dict[str, Any]]:
    """The parts of all sessions; of a part that several hold, the last one's. Their accounts become one.

    Raises:
        Refused: they are of several commits or devices.
    """
    for what in ("commit", "device"):
        found = {getattr(s, what): s.place for s in sessions}
        if len(found) > 1:
            named = ", ".join(f"{value} ({place})" for value, place in found.items())
            raise Refused(f"archives of several {what}s cannot be put together: {named}")
    made: dict[str, dict[str, Any]] = {}
    for session in sessions:
        made |= session.parts
    if sessions:
        made["session"] = {**made["session"], "steps": [step for s in sessions for step in s.steps]}
        made["session"]["failed"] = {
            k: v for s in sessions for k, v in s.parts["session"].get("failed", {}).items()
        }
    return made


def keep(sessions: Sequence[Session], folder: Path) -> list[Path]:
    """Write the parts; the paths."""
    made = together(sessions)
    if sessions and sessions[0].device == "cpu" and folder.resolve() == RESULTS:
        raise Refused("results of a rehearsal on a CPU are none: --into another folder")
    paths = []
    for part, content in made.items():
        path = folder / f"{content['date']}-{sessions[0].device}-{part}.json"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
        paths.append(path)
    return paths


def newest(folder: Path, device: str | None) -> Found:
    """The newest file of every part of a device.

    Raises:
        Refused: there are several devices, and none is named.
    """
    matches = [m for path in sorted(folder.glob("*.json")) if (m := NAME.fullmatch(path.name))]
    devices = {m["device"] for m in matches}
    if device is None and len(devices) > 1:
        raise Refused(
            f"{folder} holds results of {', '.join(sorted(devices))}: --device says whose table it is to be"
        )
    files = {m["part"]: folder / m[0] for m in matches if m["device"] == (device or m["device"])}
    return Found({part: (path.name, json.loads(path.read_text())) for part, path in files.items()})


def put(document: Path, lines: list[str]) -> None:
    """Replace what stands between the markers."""
    text = document.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise Refused(f"{document} wants one line {BEGIN} and one line {END}")
    head, rest = text.split(BEGIN)
    write_atomically(document, f"{head}{BEGIN}\n{chr(10).join(lines)}\n{END}{rest.split(END)[1]}".encode())


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("archives", nargs="*", type=Path, metavar="ARCHIVE")
    options.add_argument("--into", type=Path, default=RESULTS, help="folder of results")
    options.add_argument("--device", help="whose table, where there are several, e.g. h200")
    options.add_argument(
        "--write", action="store_true", help="put the tables into docs/performance.md and README.md"
    )
    asked = options.parse_args(arguments)
    try:
        for path in keep([read(place) for place in asked.archives], asked.into):
            print(path)
        found = newest(asked.into, asked.device)
        print("\n".join(table(found)))
        for name, make in DOCUMENTS.items() if asked.write else ():
            put(ROOT / name, make(found))
    except Refused as error:
        print(f"collect: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
