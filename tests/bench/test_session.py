"""The GPU session's script on a CPU: its plan, two cheap parts, and what it says where something is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu_session.sh"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def session(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("DATA", "WHEELS", "LIMIT", "EXTENSION", "COMMIT")}
    every = {**kept, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)], capture_output=True, text=True, env=every, cwd=ROOT
    )


def test_the_script_is_bash() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0


def test_every_part_is_in_the_plan_and_ends_within_ten_minutes() -> None:
    plan = session("--plan").stdout
    parts = dict(re.findall(r"^(\w+): (\d+) s$", plan, re.MULTILINE))
    defined = set(re.findall(r"^part_(\w+)\(\)", SCRIPT.read_text(), re.MULTILINE))
    assert set(parts) == defined
    assert all(0 < int(seconds) <= 590 for seconds in parts.values())
    limits = re.findall(r"^ +(\d+) s  (\S+) +\S", plan, re.MULTILINE)  # every step with what it leaves
    assert len({name for _, name in limits}) == len(limits) > len(parts)
    assert sum(int(seconds) for seconds, _ in limits) == sum(map(int, parts.values()))
    suggested = re.findall(r"LIMIT=\d+ bench/gpu_session.sh OUT (.*)", SCRIPT.read_text())
    assert len(suggested) == 3
    assert all(part in parts for line in suggested for part in line.split())


def test_a_rehearsal_leaves_an_archive_and_a_summary(tmp_path: Path) -> None:
    done = session(tmp_path / "out", "kernels", "sanitizer", REHEARSE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["results.tgz", "summary.txt"]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert re.search(r"^kernels +ok ", summary, re.MULTILINE)
    assert re.search(r"^memcheck +left out ", summary, re.MULTILINE)
    with tarfile.open(tmp_path / "out" / "results.tgz") as archive:
        names = archive.getnames()
        about = json.loads(archive.extractfile("results/session.json").read())
    assert {"results/kernels.log", "results/summary.txt"} <= set(names)
    assert about["gpus"] == []
    assert about["commit"]


def test_what_no_longer_fits_is_left_out(tmp_path: Path) -> None:
    done = session(tmp_path, "kernels", "ops", REHEARSE="1", LIMIT="10")
    assert done.returncode == 0
    assert re.findall(r"^(\S+) +left out +0 s  no time$", done.stdout, re.MULTILINE) == ["kernels", "ops"]


def test_a_part_that_fails_is_named_and_the_next_one_runs(tmp_path: Path) -> None:
    """Without the extension there are no kernels to launch."""
    done = session(tmp_path, "kernels", "sanitizer", REHEARSE="1", INTERLUDE_FAST_EXTENSION="0")
    assert done.returncode == 1
    assert "failed: kernels;" in done.stdout
    summary = (tmp_path / "summary.txt").read_text()
    assert "no compiled kernels for cpu: switched off" in summary
    assert "racecheck" in summary


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["nonsense"], {}, "no part 'nonsense'; there are build tests"),
        (["ops"], {"PYTHON": "nopython"}, "no nopython: PYTHON="),
        (["ops"], {"WHEELS": "/nowhere", "REHEARSE": "1"}, "the wheels in /nowhere cannot be installed"),
        (["train"], {"DATA": str(ROOT / "docs"), "REHEARSE": "1"}, "holds no train/<class>"),
    ],
    ids=["part", "python", "wheels", "data"],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    done = session(tmp_path / "out", *arguments, **environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    """A python that finds the standard library alone."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    done = session(tmp_path / "out", "ops", PYTHON=str(bare), REHEARSE="1")
    assert done.returncode == 2
    assert "python lacks torch numpy PIL pydantic" in done.stderr
    assert "WHEELS=folder" in done.stderr
