"""`interlude-fast bench` as a user meets it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from interlude_fast.cli import main
from tests.helpers import flags

pytestmark = pytest.mark.usefixtures("one_thread")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        main, ["bench", "--device", "cpu", "--seconds", "0.2", *flags(), *map(str, arguments)]
    )


def test_bench_beside_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    done = call("--out", "speed.json", "--method", "fixmatch", "--set", "data.workers=1")
    assert done.exit_code == 0, done.output
    assert os.listdir() == ["speed.json"]  # no run is left
    found = json.loads(Path("speed.json").read_text())
    assert found["chosen"]["device"] == "cpu"
    assert found["chosen"]["step"].startswith("eager")
    assert found["ours"]["gpu_idle"] == "not measured"
    assert found["ours"]["views"] == 4 * (1 + 2 * 2)
    assert found["reference"]["views"] == 2 * 4 * (1 + 2)
    ratio = found["ours"]["steps_per_second"] / found["reference"]["steps_per_second"]
    assert found["reference"]["times_slower"] == pytest.approx(ratio)
    assert found["projected"]["hours"] > found["projected"]["training_hours"] > 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("digits, fixmatch: cpu, fp32, eager")
    assert lines[-1].endswith("the reference trains InterLUDE, not fixmatch")
    assert any(line.startswith("steps/s: ") and "(reference: " in line for line in lines)


def test_bench_alone() -> None:
    done = call("--no-reference")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "reference not measured: --no-reference"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--method", "interlud"], "unknown method 'interlud'; did you mean 'interlude'?"),
        (["--seconds", "0"], "Invalid value for '--seconds'"),
        (["--device", "cuda:7"], "device 'cuda:7'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], line: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
