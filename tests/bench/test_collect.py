"""From archives to results and tables, on archives made by hand."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchvision")  # the names of ways come from the script that has the recipes

from bench import collect
from bench.tables import short_table, table

H200 = {"gpus": ["NVIDIA H200, compute capability 9.0, 140 GiB"], "driver": "580", "torch": "2.11.0+cu130"}


def sides(**times: float) -> dict[str, Any]:
    return {name.replace("_", " "): {"median_us": us} for name, us in times.items()}


OPS = {
    "rows": [
        {
            "name": "fusion forward + backward [1024, 64, 16, 16] bfloat16",
            "sides": sides(fused=90.0, eager=95.0),
        },
        {
            "name": "fusion forward + backward [1024, 64, 16, 16] bfloat16, captured",
            "sides": {**sides(fused=36.0, eager=180.0), "torch.compile": {"median_us": 45.0}},
            "memory": {"share_of_copy": 0.87, "copy_gb_per_s": 4300.0},
        },
        {
            "name": "loss head + gradient 1024 x 10, mean, captured",
            "sides": {**sides(fused=9.0, eager=99.0), "torch.compile": {"not measured": "RuntimeError"}},
            "launches": {"fused": {"kernels": 3.0}},
        },
    ]
}
STEP = {
    "rows": [
        {
            "name": "whole, WRN-28-2, 1024 rows, cuda",
            "sides": sides(captured=8000.0, compiled_and_captured=6000.0, strong=9000.0, reference=150_000.0),
        }
    ]
}
PROFILE = {
    "rows": [
        {
            "way": "captured",
            "name": "captured, WRN-28-2",
            **{"host launches": 0.0, "host graphs": 1.0, "kernels": 900.0, "idle_share": 0.012},
            "peak_allocated_bytes": 3 * 2**30,
        },
        {"way": "compiled", "name": "compiled, WRN-28-2", "not measured": "no | triton"},
    ]
}
NCU = """==PROF== noise
"ID","Kernel Name","gpu__time_duration.sum"
"","","us"
"0","interlude::fuse_kernel","12.5"
"""
METRICS = [
    {"step": 100 * i, "loss": 1.0 / i, "mask_rate": 0.5, "steps_per_second": 100.0 + i} for i in range(1, 200)
]
METRICS += [{"step": 5000, "test/ema/error": 0.1, "test/ema/macro_f1": 0.9}]
METRICS += [{"step": 5000, "pseudo_labels/accuracy": 0.875}]
RUN = {
    "train-interlude-250/metrics.jsonl": "\n".join(map(json.dumps, METRICS)) + '\n{"step": 5',  # cut off in a line
    "train-interlude-250/passport.json": json.dumps({"command": ["x", "train", "--test", "/data/c/test"], **H200}),
    "train-interlude-250/config.yaml": "seed: 3\nmodel: {name: wideresnet, depth: 28, width: 2}\n",
    "train-interlude-250/split.json": json.dumps(
        {
            "data": "0123456789abcdef" * 4,
            **{part: {"index": [0] * n} for part, n in (("labeled", 250), ("validation", 0), ("test", 10_000))},
            "unlabeled": [[0, 39_999], [50_000, 59_999]],
        }
    ),
}
RESULT = {
    "seconds": 480.0,
    "last": {n: {"step": 9, "test": {"error": e}} for n, e in (("ema", 0.07), ("raw", 0.08))},
}


def archive(path: Path, commit: str = "abc1234", passport: dict = H200, **more: Any) -> Path:
    """results.tgz with the parts in `more`: objects as JSON, text as it is."""
    gpus = [gpu.partition(",")[0] for gpu in passport["gpus"]]
    about = {"commit": commit, "date": "2026-11-30", "gpus": gpus, "parts": "", "data": "photographs"}
    files = {
        "session.json": json.dumps(about),
        "summary.txt": "ops     ok     12 s  done\nmemcheck  FAILED    3 s  exit\n",
    }
    files["memcheck.log"] = "one error"
    for name, content in more.items():
        made = {"date": "2026-11-30", "commit": commit, "passport": passport, "command": "x --out /a/b-1/c.json"}
        files[name] = content if isinstance(content, str) else json.dumps(made | content)
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"results/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def collected(folder: Path, *archives: Path) -> list[str]:
    return [path.name for path in collect.keep([collect.read(a) for a in archives], folder)]


def test_parts_of_two_archives_become_files_and_a_table(tmp_path: Path) -> None:
    a = archive(
        tmp_path / "a.tgz",
        **{"ops.json": OPS, "ncu.csv": NCU, **RUN, "train-interlude-250/result.json": json.dumps(RESULT)},
    )
    b = archive(tmp_path / "b.tgz", **{"step-28-2.json": STEP, "profile-28-2.json": PROFILE})
    names = collected(tmp_path / "into", a, b)
    assert sorted(names) == [
        f"2026-11-30-h200-{part}.json"
        for part in ("ncu", "ops", "profile-28-2", "session", "step-28-2", "train-interlude-250")
    ]
    lines = table(collect.newest(tmp_path / "into", None))
    text = "\n".join(lines)
    assert "NVIDIA H200, compute capability 9.0, 140 GiB; driver 580, torch 2.11.0+cu130; commit abc1234" in text

    def of(what: str) -> str:
        (found,) = (line for line in lines if line.startswith(f"| {what} |"))
        return found

    fusion = of("fusion, both ways, [1024, 64, 16, 16], bf16")
    assert "36.0 us, 87 % of the copy's 4,300 GB/s" in fusion
    assert "5.00 x eager (>= 4), 1.25 x torch.compile (>= 1); not measured: copies" in fusion
    assert "[ops](../bench/results/2026-11-30-h200-ops.json)" in fusion
    loss = of("loss head with gradient, 1024 x 10, mean")
    assert "9.0 us, 3 launches | 11.00 x eager (>= 10); not measured: torch.compile (>= 2)" in loss
    step = of("a whole step, WRN-28-2, 1,024 rows")
    assert "6.00 ms, compiled and captured | 25.00 x reference (>= 20), 1.50 x strong (>= 1.3)" in step
    assert "1 launches, 900 kernels, idle 1.2 %, 3.00 GiB" in of("a step of WRN-28-2, captured")
    assert "not measured: no / triton" in of("a step of WRN-28-2, compiled")
    assert of("InterLUDE, 250 labels").count("7.00 %") == 1
    assert "8.00 % | 19,900 at 200.0/s | 50.0 % | 87.5 % |" in of("InterLUDE, 250 labels")
    assert "not measured" in of("a whole step, WRN-28-8, 1,024 rows")
    about = "WRN-28-2, photographs, 50,000 unlabeled and 10,000 test images (hash 0123456789abcdef), seed 3"
    assert f"Real runs, last step: {about}" in lines
    assert any(
        "25.00 x reference" in line and "(bench/results/2026" in line
        for line in short_table(collect.newest(tmp_path / "into", None))
    )


def test_what_a_run_and_a_session_leave(tmp_path: Path) -> None:
    place = archive(tmp_path / "a.tgz", **{"ncu.csv": NCU, **RUN})
    parts = collect.read(place).parts
    run = parts["train-interlude-250"]
    assert (run["finished"], run["steps"], run["steps_per_second"]) == (False, 19_900, 200.0)
    assert len(run["curve"]) <= collect.POINTS + 1
    assert run["curve"][-1]["step"] == 19_900
    assert run["evaluations"] == [{"step": 5000, "test/ema/error": 0.1, "pseudo_labels/accuracy": 0.875}]
    assert run["command"] == "interlude-fast train --test test"
    assert parts["ncu"]["rows"] == [{"name": "interlude::fuse_kernel", "grid": "", "time": "12.5 us"}]
    assert parts["session"]["steps"][0] == {"step": "ops", "state": "ok", "seconds": "12", "said": "done"}
    assert parts["session"]["failed"] == {"memcheck": "one error"}


def test_the_table_says_what_its_figures_are_of(tmp_path: Path) -> None:
    """An op that was not captured, a step of other rows, a way of training, two versions of torch."""
    ops = {"rows": [{"name": "SGD + EMA, WRN-28-2", "sides": sides(fused=50.0)}]}
    step = {"rows": [{"name": "whole, WRN-28-2, 128 rows, cuda", "sides": sides(captured=1000.0)}]}
    memory = {
        "rows": [{"name": "WRN-28-2, 64 labeled, bf16, resident, 5 steps", "peak_bytes": 2**31, "way": "eager"}]
    }
    newer = {"step-28-2.json": {**step, "passport": {**H200, "torch": "2.12.0"}}, "memory.json": memory}
    run = {k: v for k, v in RUN.items() if not k.endswith(("split.json", "config.yaml"))}
    collected(tmp_path / "into", archive(tmp_path / "a.tgz", **{"ops.json": ops, **newer, **run}))
    found = collect.newest(tmp_path / "into", None)
    text = "\n".join(table(found))
    assert "| SGD and average of WRN-28-2 |  | 50.0 us, as called |" in text
    assert "| a whole step, WRN-28-2, 1,024 rows | <= 8 ms | not measured |" in text
    assert "2.00 GiB, eager |" in text
    assert "torch 2.11.0+cu130 | NVIDIA H200, compute capability 9.0, 140 GiB; driver 580, torch 2.12.0;" in text
    assert "network not recorded, photographs, counts not recorded, seed not recorded" in text


def test_paths_of_the_machine_are_not_kept() -> None:
    text = "x --data-root /mnt/d.1/cifar/train --out /tmp/a_b/ops.json at a/b, 1/2 (/opt/v/lib/x.py)"
    assert collect.without_places(text) == "x --data-root train --out ops.json at a/b, 1/2 (x.py)"


def test_the_newest_of_a_part_counts(tmp_path: Path) -> None:
    for day, us in (("2026-11-30", 8000.0), ("2026-12-01", 7000.0)):
        rows = [{"name": "whole, WRN-28-2, 1024 rows, cuda", "sides": sides(captured=us)}]
        content = {"date": day, "commit": "c", "passport": H200, "rows": rows}
        (tmp_path / f"{day}-h200-step-28-2.json").write_text(json.dumps(content))
    assert any("7.00 ms, captured" in line for line in table(collect.newest(tmp_path, None)))
    (tmp_path / "2026-12-02-b200-ops.json").write_text("{}")
    with pytest.raises(collect.Refused, match="b200, h200: --device"):
        collect.newest(tmp_path, None)
    assert "ops" not in collect.newest(tmp_path, "h200").parts


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    a100 = {**H200, "gpus": ["NVIDIA A100-SXM4-80GB, compute capability 8.0, 80 GiB"]}
    one = archive(tmp_path / "1.tgz", **{"ops.json": OPS})
    for other, said in (
        (archive(tmp_path / "2.tgz", commit="fff0000", **{"step-28-2.json": STEP}), "several commits"),
        (archive(tmp_path / "3.tgz", passport=a100, **{"step-28-2.json": STEP}), "several devices"),
    ):
        with pytest.raises(collect.Refused, match=said):
            collected(tmp_path / "into", one, other)
    mixed = archive(tmp_path / "4.tgz", **{"ops.json": {**OPS, "commit": "other"}})
    with pytest.raises(collect.Refused, match="ops is of commit other"):
        collect.read(mixed)
    mixed = archive(tmp_path / "5.tgz", **{"ops.json": OPS, "step-28-2.json": {**STEP, "passport": a100}})
    with pytest.raises(collect.Refused, match="several devices: a100sxm480gb, h200"):
        collect.read(mixed)
    unknown = archive(tmp_path / "7.tgz", commit="unknown", **{"ops.json": OPS})
    with pytest.raises(collect.Refused, match="of which commit"):
        collect.read(unknown)
    rehearsal = archive(tmp_path / "6.tgz", passport={"gpus": []}, **{"ops.json": OPS})
    with pytest.raises(collect.Refused, match="rehearsal"):
        collected(collect.RESULTS, rehearsal)


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_what_is_no_archive_is_one_line(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.tgz").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        collect.main([str(tmp_path / "x.tgz"), "--into", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"collect: {tmp_path}/x.tgz cannot be read")


def test_the_documents_hold_the_tables_of_the_committed_results() -> None:
    found = collect.newest(collect.RESULTS, None)
    for name, make in collect.DOCUMENTS.items():
        inside = (collect.ROOT / name).read_text().split(collect.BEGIN)[1].split(collect.END)[0]
        assert inside.strip().splitlines() == "\n".join(make(found)).strip().splitlines(), f"{name}: --write"


def test_a_table_goes_between_the_markers(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(f"before\n{collect.BEGIN}\nold\n{collect.END}\nafter\n")
    collect.put(document, ["", "new", ""])
    assert document.read_text() == f"before\n{collect.BEGIN}\n\nnew\n\n{collect.END}\nafter\n"
    document.write_text("none\n")
    with pytest.raises(collect.Refused, match="wants one line"):
        collect.put(document, [])
