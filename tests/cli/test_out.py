"""Files that commands write: what stands in the way is said before any work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from interlude_fast.cli import main

# Each would fail with another line if it began its work.
COMMANDS = {
    "compare": ["compare", "--methods", "interlud", "--out"],
    "bench": ["bench", "--method", "interlud", "--out"],
    "split": ["data", "split", "--dataset", "digitz", "--out"],
    "preview": ["data", "preview", "--dataset", "digitz", "--out"],
    "inspect": ["data", "inspect", "--dataset", "digitz", "--json"],
    "eval": ["eval", "nowhere", "--out"],
    "embed": ["embed", "nowhere", "image.png", "--out"],
    "predict": ["predict", "nowhere", "image.png", "--out"],
}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command line in a folder that holds `there.json` and the folder `folder`."""
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("kept")
    Path("folder").mkdir()
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


def refused(done: Result) -> str:
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert Path("there.json").read_text() == "kept"
    assert sorted(os.listdir()) == ["folder", "there.json"]
    return done.stderr


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_existing_file_is_refused_before_any_work(call: Callable[..., Result], command: list[str]) -> None:
    line = f"Invalid value for '{command[-1]}': there.json exists; --overwrite replaces it\n"
    assert refused(call(*command, "there.json")) == f"interlude-fast: error: {line}"
    for arguments in ((*command, "there.json", "--overwrite"), (*command[:-1], "--overwrite", command[-1], "new")):
        assert "Invalid value" not in refused(call(*arguments))  # what comes next stops it


@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("folder", "folder is a folder; name a file"),
        ("there.json/new.json", "there.json/new.json cannot be written: {}/there.json is not a folder"),
        ("there.json/a/new.json", "there.json/a/new.json cannot be written: {}/there.json is not a folder"),
        ("/dev/null", "/dev/null is not a file"),
        ("x" * 300, "cannot be written: File name too long"),
    ],
)
def test_what_cannot_be_written_is_refused_too(call: Callable[..., Result], out: str, line: str) -> None:
    assert line.format(Path.cwd()) in refused(call(*COMMANDS["compare"], out, "--overwrite"))


def test_folders_are_made_where_that_is_allowed(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "did you mean 'interlude'?" in refused(call(*COMMANDS["compare"], "a/b/new.json"))
    monkeypatch.setattr("interlude_fast.cli.settings.os.access", lambda folder, mode: False)
    line = f"a/b/new.json cannot be written: no permission to write in {Path.cwd()}\n"
    assert refused(call(*COMMANDS["compare"], "a/b/new.json")).endswith(line)


def test_overwrite_replaces_the_file(call: Callable[..., Result]) -> None:
    for out in ("there.json", "a/new.json"):
        done = call("data", "split", "--labels", "40", "--out", out, "--overwrite")
        assert done.exit_code == 0, done.stderr
        assert json.loads(Path(out).read_text())
