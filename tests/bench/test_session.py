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


UNSET = ("DATA", "DATA_NAME", "WHEELS", "LIMIT", "EXTENSION", "COMMIT")


def session(*arguments: object, script: Path = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in UNSET}
    every = {**kept, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", script, *map(str, arguments)], capture_output=True, text=True, env=every, cwd=ROOT
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
    suggested = re.findall(r"COMMIT=ID LIMIT=\d+ bench/gpu_session.sh OUT (.*)", SCRIPT.read_text())
    assert len(suggested) == 3
    assert all(part in parts for line in suggested for part in line.split())


def test_the_usage_is_told_from_any_folder() -> None:
    done = subprocess.run(["bash", f"./{SCRIPT.name}"], capture_output=True, text=True, cwd=SCRIPT.parent)
    assert done.returncode == 2
    assert "DATA_NAME=words" in done.stdout
    assert not done.stderr


def test_a_rehearsal_leaves_an_archive_and_a_summary(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".results.1").touch()  # of a call that was cut off
    done = session(tmp_path / "out", "kernels", "sanitizer", REHEARSE="1", DATA_NAME='some "images"')
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
    assert about["data"] == "some images"
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


# ---- A machine with a GPU and a compiler, made believe -----------------------------------------------

NVIDIA_SMI = """#!/bin/sh
case "$*" in
*compute_cap*) echo 9.0 ;;
*noheader*) echo "NVIDIA H200" ;;
*) printf 'name, driver_version\\nNVIDIA H200, 580\\n' ;;
esac
"""
PYTHON = """#!/bin/sh
case "$*" in
setup.py*)
  echo once >>builds
  [ ! -f broken ] || { echo "csrc/a.cu(3): error: no such thing"; exit 1; }
  touch interlude_fast/_C.so ;;
*doctor*) echo "extension       built with gcc, torch 2.11; $KERNELS" ;;
*bench.kernels*) echo "SGD and EMA: 12 tensors" ;;
*) exec "$REAL" "$@" ;;
esac
"""


class Machine:
    """A tree without git; `call` runs the session in it."""

    def __init__(self, place: Path) -> None:
        self.tree, self.tools = place / "tree", place / "tools"
        for name, text in {"nvidia-smi": NVIDIA_SMI, "python": PYTHON}.items():
            self.tools.mkdir(parents=True, exist_ok=True)
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)
        for name in ("csrc", "bench", "interlude_fast"):
            (self.tree / name).mkdir(parents=True)
        (self.tree / "csrc" / "a.cu").write_text("1")
        (self.tree / "setup.py").write_text("")
        shutil.copy(SCRIPT, self.tree / "bench")

    def call(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        script = self.tree / "bench" / SCRIPT.name
        path = f"{self.tools}:{os.environ['PATH']}"
        mine = {"PATH": path, "PYTHON": str(self.tools / "python"), "REAL": sys.executable, "COMMIT": "abc1234"}
        kernels = {"KERNELS": "CUDA 13.0 for 9.0"}
        return session(*arguments, script=script, **{**mine, **kernels, **environment})

    @property
    def builds(self) -> int:
        return len((self.tree / "builds").read_text().splitlines()) if (self.tree / "builds").exists() else 0


def test_the_extension_is_built_once_for_the_same_sources(tmp_path: Path) -> None:
    machine, out = Machine(tmp_path), tmp_path / "out"
    first = machine.call(out, "build", "kernels")
    assert first.returncode == 0, first.stdout + first.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "_C.so",
        "extension.fingerprint",
        "results.tgz",
        "summary.txt",
    ]
    with tarfile.open(out / "results.tgz") as archive:
        about = json.loads(archive.extractfile("results/session.json").read())
    assert (about["commit"], about["gpus"], about["parts"]) == ("abc1234", ["NVIDIA H200"], "build kernels")
    assert "nothing has changed" in machine.call(tmp_path / "again", "build").stdout
    assert machine.builds == 1
    (machine.tree / "csrc" / "a.cu").write_text("2")
    machine.call(tmp_path / "again", "build")
    assert machine.builds == 2
    machine.call(tmp_path / "again", "build", TORCH_CUDA_ARCH_LIST="8.0")
    assert machine.builds == 3


def test_a_log_that_ran_away_is_cut_in_the_archive(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    noisy = machine.tools / "ncu"
    noisy.write_text("#!/bin/sh\nhead -c 2000000 /dev/zero | tr '\\0' x\n")
    noisy.chmod(0o755)
    assert machine.call(tmp_path / "out", "ncu").returncode == 0
    with tarfile.open(tmp_path / "out" / "results.tgz") as archive:
        assert archive.getmember("results/ncu.log").size == 500_000


def test_an_extension_of_an_earlier_call_is_taken_where_it_fits(tmp_path: Path) -> None:
    Machine(tmp_path / "1").call(tmp_path / "out", "build")
    fresh = Machine(tmp_path / "2")
    assert "taken from" in fresh.call(tmp_path / "out2", "build", EXTENSION=str(tmp_path / "out")).stdout
    assert fresh.builds == 0
    other = Machine(tmp_path / "3")
    (other.tree / "csrc" / "a.cu").write_text("2")
    other.call(tmp_path / "out3", "build", EXTENSION=str(tmp_path / "out"))
    assert other.builds == 1


def test_nothing_is_measured_of_an_unknown_commit(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    done = machine.call(tmp_path / "out", "build", COMMIT="")
    assert (done.returncode, machine.builds) == (2, 0)
    assert "COMMIT=id" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nothing_is_measured_without_the_extension(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.tree / "broken").touch()
    done = machine.call(tmp_path / "out", "build", "kernels")
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert done.returncode == 1
    assert "csrc/a.cu(3): error: no such thing" in summary
    assert "kernels" not in summary
    assert (tmp_path / "out" / "results.tgz").exists()
    (machine.tree / "broken").unlink()
    done = machine.call(tmp_path / "out", "build", "kernels", KERNELS="no CUDA kernels")
    assert done.returncode == 1
    assert "no CUDA kernels: extension" in done.stderr
    machine.call(tmp_path / "out", "build")
    assert machine.builds == 3  # what had no kernels did not count


def test_checkers_are_given_our_kernels_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for name in ("compute-sanitizer", "ncu"):
        tool = machine.tools / name
        tool.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        tool.chmod(0o755)
    machine.call(tmp_path / "out", "sanitizer", "ncu")
    with tarfile.open(tmp_path / "out" / "results.tgz") as archive:
        said = {
            n: archive.extractfile(f"results/{n}.log").read().decode() for n in ("memcheck", "racecheck", "ncu")
        }
    for tool in ("memcheck", "racecheck"):
        assert f"--tool {tool} --kernel-name kns=interlude --error-exitcode 9" in said[tool]
    assert "--clock-control none" in said["ncu"]
    assert "--kernel-name regex:interlude" in said["ncu"]
