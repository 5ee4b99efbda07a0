"""The GPU table: what is aimed at, what was measured, and the file that holds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from bench.step import RECIPES, WAYS

NOT_MEASURED = "not measured"
Row = dict[str, Any]
NETWORKS = {
    "WRN-28-2": ("step-28-2", 8),
    "WRN-28-8": ("step-28-8", 55),
    "WRN-37-2": ("step-37-2", 20),
}  # target in ms
RUNS = {
    "train-interlude-250": "InterLUDE, 250 labels",
    "train-interlude-250-compiled": "InterLUDE, 250 labels, compiled",
    "train-fixmatch-250": "FixMatch, 250 labels",
    "train-supervised-250": "supervised only, 250 labels",
    "train-interlude-40": "InterLUDE, 40 labels",
    "together-interlude-250": "InterLUDE, 250 labels, one of four that share the GPU",
    "together-fixmatch-250": "FixMatch, 250 labels, likewise",
    "together-supervised-250": "supervised only, 250 labels, likewise",
    "together-interlude-40": "InterLUDE, 40 labels, likewise",
}


@dataclass(frozen=True)
class Found:
    """parts: (file, content) by name."""

    parts: dict[str, tuple[str, dict[str, Any]]]

    def file(self, part: str) -> str:
        return self.parts[part][0] if part in self.parts else ""

    def content(self, part: str) -> dict[str, Any]:
        return self.parts[part][1] if part in self.parts else {}

    def row(self, part: str, *names: str) -> Row:
        """The first row of a part whose name begins with one of `names`, in turn; empty where there is none."""
        rows = self.content(part).get("rows", [])
        return next((row for name in names for row in rows if row["name"].startswith(name)), {})


def micros(row: Row, side: str) -> float | None:
    return row.get("sides", {}).get(side, {}).get("median_us")


def time(us: float | None) -> str:
    if us is None:
        return NOT_MEASURED
    return f"{us:.1f} us" if us < 1000 else f"{us / 1000:.2f} ms" if us < 1e5 else f"{us / 1e6:.2f} s"


def ratios(row: Row, ours: float | None, sides: dict[str, str]) -> str:
    """`3.1 x eager (>= 4); not measured: torch.compile (>= 1)`, for sides with their targets."""
    told, missing = [], []
    for side, target in sides.items():
        named, theirs = f"{side} ({target})" if target else side, micros(row, side)
        if ours and theirs:
            told.append(f"{theirs / ours:.2f} x {named}")
        else:
            missing.append(named)
    return "; ".join(filter(None, [", ".join(told), missing and f"{NOT_MEASURED}: {', '.join(missing)}"]))


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def share(row: Row, key: str) -> str:
    """`, 87 % of the copy's 4,300 GB/s`"""
    memory = row.get(key, {})
    return (
        f", {percent(memory['share_of_copy'], 0)} of the copy's {memory['copy_gb_per_s']:,.0f} GB/s"
        if memory
        else ""
    )


@dataclass(frozen=True)
class Line:
    """A row of the table. part: whose file holds it."""

    what: str
    target: str
    measured: str
    beside: str
    part: str


def op_lines(found: Found) -> Iterator[Line]:
    for channels in (64, 256):
        row = found.row("ops", f"fusion forward + backward [1024, {channels}, 16, 16] bfloat16, captured")
        ours = micros(row, "fused")
        beside = ratios(row, ours, {"eager": ">= 4", "torch.compile": ">= 1", "copies of as many bytes": ""})
        what = f"fusion, both ways, [1024, {channels}, 16, 16], bf16"
        yield Line(what, ">= 85 % of a copy", time(ours) + share(row, "memory"), beside, "ops")
    for classes in (10, 100):
        for delta in ("mean", "per_class"):
            row = found.row("ops", f"loss head + gradient 1024 x {classes}, {delta}, captured")
            ours, launches = micros(row, "fused"), row.get("launches", {}).get("fused", {}).get("kernels")
            measured = time(ours) + (f", {launches:g} launches" if launches is not None else "")
            beside = ratios(row, ours, {"eager": ">= 10", "torch.compile": ">= 2"})
            what = f"loss head with gradient, 1024 x {classes}, {delta}"
            yield Line(what, "one launch, <= 15 us", measured, beside, "ops")
    row = found.row("ops", "SGD + EMA, WRN-28-2, captured", "SGD + EMA, WRN-28-2")
    ours = micros(row, "fused")
    beside = ratios(row, ours, {"torch foreach": "", "torch fused": ""})
    measured = time(ours) + ", as called" * (ours is not None and not row["name"].endswith(", captured"))
    yield Line("SGD and average of WRN-28-2", "", measured, beside, "ops")


def batch_lines(found: Found) -> Iterator[Line]:
    for side, target in ((32, "150 us"), (96, "1.2 ms")):
        part = f"pipelines-{side}"
        row = found.row(part, "1024 views")
        captured = micros(row, "resident, captured")
        ours = micros(row, "resident") if captured is None else captured
        measured = time(ours) + " captured" * (captured is not None) + share(row, "resident")
        others = {"dali": ">= 10", "torchvision v2, whole batch": ">= 50", "torchvision, all cores": ""}
        what = f"a step's 1,024 views, {side} px, bf16"
        yield Line(what, f"<= {target}", measured, ratios(row, ours, others), part)


def step_lines(found: Found) -> Iterator[Line]:
    for network, (part, target) in NETWORKS.items():
        row = found.row(part, f"whole, {network}, 1024 rows")
        times = {way: us for way in WAYS if (us := micros(row, way)) is not None}
        best = min(times, key=lambda way: times[way]) if times else None
        measured = f"{time(times[best])}, {best}" if best else NOT_MEASURED
        others = {"reference": ">= 20", "strong": ">= 1.3", **{way: "" for way in times if way != best}}
        beside = ratios(row, times[best] if best else None, others)
        yield Line(f"a whole step, {network}, 1,024 rows", f"<= {target} ms", measured, beside, part)


def profile_lines(found: Found) -> Iterator[Line]:
    part = "profile-28-2"
    rows = {row["way"]: row for row in found.content(part).get("rows", [])}
    for way in (*WAYS, *RECIPES):
        row, ours = rows.get(way, {}), way in WAYS
        if "kernels" in row:
            idle = row["idle_share"]
            measured = (
                f"{row['host launches'] + row['host graphs']:,.0f} launches, {row['kernels']:,.0f} kernels, "
            )
            measured += f"idle {percent(idle)}, " if isinstance(idle, float) else f"idle {idle}, "
            measured += f"{row['peak_allocated_bytes'] / 2**30:.2f} GiB"
        else:
            measured = NOT_MEASURED + (f": {row[NOT_MEASURED]}" if NOT_MEASURED in row else "")
        what = f"a step of WRN-28-2, {way}" + " recipe" * (not ours)
        yield Line(what, "idle < 3 %, < 6 GiB" if ours else "", measured, "", part)


def projection_lines(found: Found) -> Iterator[Line]:
    content = found.content("bench")
    measured, beside = NOT_MEASURED, f"{NOT_MEASURED}: reference"
    if content:
        hours, idle = content["projected"]["hours"], content["ours"]["gpu_idle"]
        measured = f"{hours:.2f} h at {content['ours']['steps_per_second']:.1f} steps/s, "
        measured += f"GPU idle {percent(idle)}" if isinstance(idle, float) else f"GPU idle {idle}"
        times = content["reference"].get("times_slower")
        beside = f"{times:.1f} x reference" if times else beside
    yield Line("2^20 steps with evaluations, WRN-28-2, projected", "< 2.5 h", measured, beside, "bench")


def memory_lines(found: Found) -> Iterator[Line]:
    row = found.row("memory", "WRN-28-2, 64 labeled, bf16, resident, 5 steps")
    way = row.get("way", "way not recorded")
    measured = f"{row['peak_bytes'] / 2**30:.2f} GiB, {way}" if "peak_bytes" in row else NOT_MEASURED
    yield Line("peak memory, WRN-28-2, 1,024 rows, in a process of its own", "< 6 GiB", measured, "", "memory")


def run_lines(found: Found) -> Iterator[tuple[str, ...]]:
    """A row each for the runs that there are, where there are none for the first that is to be; last the part."""
    for part in [part for part in RUNS if part in found.parts] or [next(iter(RUNS))]:
        run = found.content(part)
        if not run:
            yield RUNS[part], *[NOT_MEASURED] * 5, part
            continue
        ends = [run["last"].get(network, {}).get("test") or {} for network in ("ema", "raw")]
        errors = [percent(e["error"], 2) if "error" in e else NOT_MEASURED for e in ends]
        speed = f"{run['steps_per_second']:.1f}" if run["steps_per_second"] else NOT_MEASURED
        masks = [row["mask_rate"] for row in run["curve"] if "mask_rate" in row]
        judged = [row for row in run["evaluations"] if "pseudo_labels/accuracy" in row]
        pseudo = percent(judged[-1]["pseudo_labels/accuracy"]) if judged else NOT_MEASURED
        steps = f"{run['steps']:,} at {speed}/s" + ", cut off" * (not run["finished"])
        yield RUNS[part], *errors, steps, percent(masks[-1]) if masks else "none", pseudo, part


def run_setting(run: dict[str, Any]) -> str:
    """`WRN-28-2, NAME, 50,000 unlabeled and 10,000 test images (hash 0123), seed 0`, by what the run left."""
    config, images = yaml.safe_load(run["config"]) or {}, run.get("images", {})
    model = config.get("model", {})
    wide = model.get("name") == "wideresnet" and {"depth", "width"} <= model.keys()
    network = f"WRN-{model['depth']}-{model['width']}" if wide else model.get("name", "network not recorded")
    counted = "counts not recorded"
    if images:
        counted = f"{images['unlabeled']:,} unlabeled and {images['test']:,} test images (hash {images['hash']})"
    return (
        f"{network}, {run.get('data') or 'images of DATA'}, {counted}, seed {config.get('seed', 'not recorded')}"
    )


def runs_line(found: Found) -> str:
    settings = sorted({run_setting(found.content(part)) for part in RUNS if part in found.parts})
    return f"Real runs, last step: {'; '.join(settings) or NOT_MEASURED}"


def machine_line(found: Found) -> str:
    if not found.parts:
        return "No GPU has run this version: nothing below is measured."
    passports = [c["passport"] for _, c in found.parts.values() if "passport" in c]
    machines = sorted(
        {f"{'; '.join(p['gpus']) or 'CPU'}; driver {p['driver']}, torch {p['torch']}" for p in passports}
    )
    commits = ", ".join(sorted({c["commit"] for _, c in found.parts.values()}))
    return (
        f"{' | '.join(machines) or 'machine not recorded'}; commit {commits}. "
        "Medians of one run; `x`: the other side's time over ours."
    )


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cleaned = ([cell.replace("|", "/") for cell in row] for row in (heading, ["---"] * len(heading), *rows))
    return ["| " + " | ".join(row) + " |" for row in cleaned]


def link(found: Found, part: str, folder: str) -> str:
    return f"[{part}]({folder}/{found.file(part)})" if part in found.parts else ""


def table(found: Found) -> list[str]:
    """For docs/performance.md."""
    parts = (op_lines, batch_lines, step_lines, profile_lines, projection_lines, memory_lines)
    lines = [line for part in parts for line in part(found)]
    folder = "../bench/results"
    rows = [(x.what, x.target, x.measured, x.beside, link(found, x.part, folder)) for x in lines]
    runs = [(*cells, link(found, part, folder)) for *cells, part in run_lines(found)]
    return [
        *("", machine_line(found), ""),
        *markdown(("what", "target", "measured", "beside it, in the same run", "file"), rows),
        *("", runs_line(found), ""),
        *markdown(("run", "EMA error", "raw error", "steps", "mask rate", "pseudo labels right", "file"), runs),
        "",
    ]


def short_table(found: Found) -> list[str]:
    """For the README."""
    if not found.parts:
        return ["", "GPU speed is not measured: no GPU has run this version.", ""]
    lines = [*step_lines(found), *list(batch_lines(found))[:1], *projection_lines(found)]
    rows = [(x.what, x.measured, x.beside, link(found, x.part, "bench/results")) for x in lines]
    return ["", machine_line(found), "", *markdown(("on a GPU", "measured", "beside it", "file"), rows), ""]
