"""What is read out of the compiler's and cuobjdump's words: those of a kernel of 128 threads. It sums doubles
in a loop over x[i / side], has 256 bytes of shared memory, copies 16 bytes a thread and exchanges lanes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import resources

FOLDER = Path(__file__).parents[1] / "golden" / "resources"


@pytest.fixture
def words() -> tuple[str, str, str]:
    log, sass, elf = ((FOLDER / f"{name}.txt").read_text() for name in ("ptxas", "sass", "elf"))
    return log, sass, elf


def test_a_kernel_is_counted(words: tuple[str, str, str]) -> None:
    (row,) = resources.report(*words)
    assert "toy_kernel" in row["name"]
    assert (row["registers"], row["shared_bytes"], row["spill_bytes"], row["stack_bytes"]) == (20, 256, 0, 0)
    assert row["accesses"] == {
        "LDG": {"16": 1, "8": 1},
        "STG": {"16": 1, "8": 1},
        "LDS": {"8": 1},
        "STS": {"8": 1},
    }
    assert row["order"] == ["2 L", "2 S"]
    assert (row["instructions"], row["loops"]) == (68, [20])
    assert (row["divisions"], row["reciprocals"], row["calls"], row["f64"]) == (1, 1, 0, 1)
    assert (row["barriers"], row["shuffles"]) == (1, 2)
    assert row["occupancy"][""] == {"threads": 128, "blocks": 16, "warps": 64}


def test_spills_and_a_launch_for_kernels_that_are_not_in_the_code(words: tuple[str, str, str]) -> None:
    log, sass, elf = words
    spilled = log.replace("0 bytes spill stores, 0 bytes", "20 bytes spill stores, 24 bytes")
    assert resources.report(spilled, sass, elf)[0]["spill_bytes"] == 44
    assert resources.report(log, sass, "")[0]["occupancy"][""]["threads"] == 1024
    assert resources.report("", sass, elf) == []


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [
        (256, 32, 0, 8),  # 2,048 threads
        (256, 33, 0, 6),  # registers come in units of 8
        (256, 48, 0, 5),
        (512, 56, 0, 2),
        (256, 32, 58 * 1024, 3),  # shared memory, with a kilobyte for each block
        (32, 16, 0, 32),  # blocks
        (1024, 255, 0, 0),  # does not fit
    ],
)
def test_occupancy(threads: int, registers: int, shared: int, blocks: int) -> None:
    assert resources.occupancy(threads, registers, shared)["blocks"] == blocks


def test_the_code_names_its_assembler() -> None:
    note = "\tTool Name: ptxas\n\tTool Version: release 13.0, V13.0.88\n\tTool Branch: x\n"
    assert resources.versions(note + "\n" + note) == ["release 13.0, V13.0.88"]


def test_dynamic_shared_memory_of_the_views() -> None:
    assert resources.dynamic_shared("augment_kernel<3, float>") == {"32 px": 6144, "96 px": 55296}
    assert resources.dynamic_shared("fuse_kernel<float, 4>") == {"": 0}


def test_without_the_tool_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(resources, "cuobjdump", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        resources.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_build_that_fails_says_setup_py_s_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "setup.py").write_text("import sys\nprint('compiling')\nsys.exit('no nvcc found')\n")
    monkeypatch.setattr(resources, "ROOT", tmp_path)
    monkeypatch.setattr(resources, "cuobjdump", lambda: Path("cuobjdump"))
    with pytest.raises(SystemExit) as stopped:
        resources.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "bench.resources: no nvcc found\n"
