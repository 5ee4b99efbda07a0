"""Prepared images on disk: found again by content, never trusted when damaged, whole whoever is killed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from interlude_fast.data import cache as caches
from interlude_fast.data import decode, storage
from interlude_fast.data.cache import RichProgress, default_cache, entries, prepared_images, remove, survey
from interlude_fast.data.images import Recipe
from interlude_fast.errors import DataError

RECIPE = Recipe(8, 3)
ROOT = Path(__file__).parents[2]


class Listener:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.counts: dict[str, int] = {}
        self.totals: dict[str, int] = {}
        self.what = ""

    def start(self, what: str, total: int) -> None:
        self.what, self.totals[what] = what, total

    def advance(self, n: int) -> None:
        self.counts[self.what] = self.counts.get(self.what, 0) + n

    def done(self) -> None: ...

    def note(self, line: str) -> None:
        assert "\n" not in line
        self.notes.append(line)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def write_pictures(folder: Path, count: int) -> list[Path]:
    """PNGs that are as old as files usually are: surveys remember none of the last seconds."""
    folder.mkdir(parents=True)
    files = [folder / f"{number:03}.png" for number in range(count)]
    for number, file in enumerate(files):
        Image.fromarray(picture(number)).save(file)
        os.utime(file, (1e9, 1e9))
    return files


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "photos", 20)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(
    files: list[Path], cache: Path, recipe: Recipe = RECIPE, listener: Listener | None = None
) -> caches.Prepared:
    return prepared_images(files, survey(files, cache, listener), recipe, cache, listener)


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files decoded from now on."""
    paths: list[str] = []
    real = decode.prepare_file
    monkeypatch.setattr(decode, "prepare_file", lambda path, *rest: paths.append(path) or real(path, *rest))
    return paths


def whole(prepared: caches.Prepared, numbers: range | list[int]) -> bool:
    return np.array_equal(prepared.images, np.stack([picture(n) for n in numbers]))


# --- survey ---


def test_facts(tmp_path: Path, files: list[Path], cache: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("L", (5, 3)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "text.jpg").write_text("no image")
    facts = survey([tmp_path / "turned.jpg", files[3], tmp_path / "text.jpg", tmp_path / "gone.jpg"], cache)
    assert (facts[0].width, facts[0].height, facts[0].mode) == (3, 5, "L")
    assert facts[1].digest == hashlib.blake2b(files[3].read_bytes(), digest_size=16).hexdigest()
    assert (facts[1].width, facts[1].height, facts[1].mode, facts[1].reason) == (8, 8, "RGB", None)
    assert facts[2].digest
    assert facts[2].reason == "not an image, or its header is damaged"
    assert facts[3] == decode.FileFacts("", 0, 0, "", "no such file or directory")
    assert survey([], cache) == []


def test_a_second_survey_reads_nothing(
    files: list[Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / "bad.png").write_text("no image")
    os.utime(tmp_path / "photos" / "bad.png", (1e9, 1e9))
    all_files = [*files, tmp_path / "photos" / "bad.png"]
    first = survey(all_files, cache)
    listener = Listener()
    assert survey(all_files, cache, listener) == first
    assert survey(all_files[5:9], cache, listener) == first[5:9]
    assert listener.totals == {}
    # Another Pillow may read what this one does not.
    monkeypatch.setattr(caches, "FORMAT", "another")
    assert survey(all_files, cache, listener) == first
    assert listener.totals == {"reading files": 1}


def test_changed_files_are_read_again(files: list[Path], cache: Path) -> None:
    first = survey(files, cache)
    Image.fromarray(picture(99)).save(files[4])
    listener = Listener()
    second = survey(files, cache, listener)
    assert [n for n in range(20) if first[n] != second[n]] == [4]
    assert listener.totals == {"reading files": 1}
    # Written just now: one more change might leave its time as it is, so it is not remembered yet.
    survey(files, cache, again := Listener())
    assert again.totals == {"reading files": 1}


@pytest.mark.parametrize("beside", [False, True])
def test_a_change_that_keeps_size_and_time_is_noticed(files: list[Path], cache: Path, beside: bool) -> None:
    first = survey(files, cache)
    content = bytearray(files[4].read_bytes())
    content[-1] ^= 1
    target = files[4].with_name("new") if beside else files[4]  # rsync -t, or rsync -t --inplace
    target.write_bytes(content)
    os.utime(target, (1e9, 1e9))
    target.replace(files[4])
    second = survey(files, cache)
    assert [n for n in range(20) if first[n].digest != second[n].digest] == [4]


def test_the_same_file_twice(files: list[Path], cache: Path) -> None:
    prepared = load([files[0], files[1], files[0]], cache)
    assert whole(prepared, [0, 1, 0])


@pytest.mark.parametrize("damage", ["garbage", "empty", "flipped", "another archive", "a folder"])
def test_a_damaged_index_is_ignored(files: list[Path], cache: Path, damage: str) -> None:
    first = survey(files, cache)
    (index,) = (cache / "index").iterdir()
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "a folder":
        index.unlink()
        index.mkdir()
    elif damage == "another archive":
        np.savez(index, header=np.frombuffer(b"{}", np.uint8), numbers=np.zeros((3, 4)))
    else:
        index.write_bytes({"garbage": b"\x00garbage" * 9, "empty": b"", "flipped": bytes(content)}[damage])
    listener = Listener()
    assert survey(files, cache, listener) == first
    assert listener.totals == {"reading files": 20}


def test_any_flipped_byte_of_an_index_changes_no_fact(files: list[Path], cache: Path) -> None:
    first = survey(files, cache)
    (index,) = (cache / "index").iterdir()
    content = index.read_bytes()
    known = {(str(file), caches._stamp(str(file))): f for file, f in zip(files, first, strict=True)}
    reader = caches._Index(cache, str(files[0].parent))
    assert reader.read() == known
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        index.write_bytes(damaged)
        assert reader.read() in (known, {})


# --- prepared images ---


def test_images_statistics_and_order(files: list[Path], cache: Path) -> None:
    listener = Listener()
    prepared = load(files, cache, listener=listener)
    assert whole(prepared, range(20))
    assert prepared.kept.tolist() == list(range(20))
    assert prepared.kept.dtype == prepared.sums.dtype == prepared.squares.dtype == np.int64
    wide = prepared.images.astype(np.int64)
    assert np.array_equal(prepared.sums, wide.sum((1, 2)))
    assert np.array_equal(prepared.squares, (wide**2).sum((1, 2)))
    assert listener.counts == {"reading files": 20, "preparing images at 8 px": 20}
    (line,) = listener.notes
    assert re.fullmatch(r"prepared 20 images at 8 px in \d+\.\d s; cache .*/cache", line)
    # A plain .npy file, too.
    assert np.array_equal(np.load(prepared.folder / "images.npy"), prepared.images)


def test_torch_takes_them_without_a_warning(
    files: list[Path], cache: Path, recwarn: pytest.WarningsRecorder
) -> None:
    import torch  # not above: processes that import this file need none

    prepared = load(files, cache)
    tensor = torch.from_numpy(prepared.images)
    tensor[0] = 0  # in this process alone
    assert not recwarn.list
    assert whole(load(files, cache), range(20))


def test_a_second_time_decodes_nothing(files: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(files, cache)
    paths = decoded(monkeypatch)
    second = load(files, cache, listener=(listener := Listener()))
    assert paths == []
    assert listener.notes == []
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.squares, second.squares)


def test_a_renamed_folder_is_the_same_content(
    files: list[Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(files, cache)
    shutil.move(tmp_path / "photos", tmp_path / "elsewhere")
    paths = decoded(monkeypatch)
    assert whole(load([tmp_path / "elsewhere" / file.name for file in files], cache), range(20))
    assert paths == []


def test_other_content_order_and_recipe_are_other_entries(files: list[Path], cache: Path) -> None:
    keys = [load(files, cache).folder.name]
    keys.append(load(files[::-1], cache).folder.name)
    for recipe in (Recipe(8, 1), Recipe(9, 3), Recipe(8, 3, "pad")):
        prepared = load(files, cache, recipe)
        assert prepared.images.shape == (20, *recipe.shape)
        keys.append(prepared.folder.name)
    Image.fromarray(picture(99)).save(files[4])
    changed = load(files, cache)
    assert whole(changed, [0, 1, 2, 3, 99, *range(5, 20)])
    assert len({*keys, changed.folder.name}) == 6


def test_unreadable_files_leave_no_holes(files: list[Path], cache: Path) -> None:
    cut = files[7].read_bytes()
    files[7].write_bytes(cut[: len(cut) - 60])  # a good header: found when it is decoded
    files[0].write_bytes(cut[: len(cut) - 70])
    files[12].write_text("no image at all")
    files[13].unlink()
    good = [n for n in range(20) if n not in (0, 7, 12, 13)]
    for _ in range(2):  # made, and found
        prepared = load(files, cache, listener=(listener := Listener()))
        assert whole(prepared, good)
        assert prepared.kept.tolist() == good
        assert [number for number, _ in prepared.skipped] == [0, 7, 12, 13]
        reasons = dict(prepared.skipped)
        assert reasons[7].startswith("damaged: ")
        assert reasons[12] == "not an image, or its header is damaged"
        assert reasons[13] == "no such file or directory"
        assert np.array_equal(prepared.sums, prepared.images.astype(np.int64).sum((1, 2)))
        assert all("16 images" in note and "4 skipped" in note for note in listener.notes)
    assert (prepared.folder / "images.npy").stat().st_size == 128 + 16 * 192


def test_nothing_readable_is_an_empty_array(files: list[Path], cache: Path) -> None:
    for file in files:
        file.write_bytes(file.read_bytes()[:-60])
    for _ in range(2):
        prepared = load(files, cache)
        assert prepared.images.shape == (0, 8, 8, 3)
        assert len(prepared.skipped) == 20
    assert load([], cache).images.shape == (0, 8, 8, 3)


def test_in_processes_too(files: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PROCESSES_FROM", 1)
    monkeypatch.setattr(decode, "cores", lambda: 2)
    files[7].write_bytes(files[7].read_bytes()[:-60])
    prepared = load(files, cache, listener=(listener := Listener()))
    assert whole(prepared, [n for n in range(20) if n != 7])
    assert prepared.skipped[0][0] == 7
    assert listener.counts == {"reading files": 20, "preparing images at 8 px": 20}


def die(job: decode.InspectJob) -> list[decode.FileFacts]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def test_a_process_that_dies_is_one_line(files: list[Path]) -> None:
    with pytest.raises(DataError, match=r"died \(exit code -9\).* between a\.jpg and b\.jpg"):
        decode.for_each(die, [decode.InspectJob(0, ("a.jpg", "b.jpg"))], lambda job, facts: None, processes=True)


def test_ctrl_c_does_not_reach_a_process_that_starts(files: list[Path]) -> None:
    worker = decode._Process()
    os.kill(worker._started().pid, signal.SIGINT)
    assert worker(decode.inspect_files, decode.InspectJob(0, (str(files[0]),)))[0].mode == "RGB"
    worker.close()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_files_that_change_under_way_are_not_kept_under_the_old_content(files: list[Path], cache: Path) -> None:
    facts = survey(files, cache)
    Image.fromarray(picture(99)).save(files[4])
    with pytest.raises(DataError, match=r"004\.png changed while images were being prepared; start again"):
        prepared_images(files, facts, RECIPE, cache)
    files[4].unlink()
    with pytest.raises(DataError, match=r"004\.png changed .*no such file"):
        prepared_images(files, facts, RECIPE, cache)
    assert list((cache / "images").iterdir()) == []


# --- damage ---


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _other_version(folder: Path) -> None:
    arrays = dict(np.load(folder / "meta.npz"))
    header = {**json.loads(arrays["header"].tobytes()), "format": "interlude-fast images 0"}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(folder / "meta.npz", **arrays)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda folder: os.truncate(folder / "images.npy", 1000),
    "longer": lambda folder: os.truncate(folder / "images.npy", 128 + 21 * 192),
    "flipped pixel": lambda folder: _flip(folder / "images.npy", 2000),
    "flipped last byte": lambda folder: _flip(folder / "images.npy", -1),
    "flipped header": lambda folder: _flip(folder / "images.npy", 61),
    "no images": lambda folder: (folder / "images.npy").unlink(),
    "no meta": lambda folder: (folder / "meta.npz").unlink(),
    "meta cut short": lambda folder: os.truncate(folder / "meta.npz", 300),
    "meta flipped": lambda folder: _flip(folder / "meta.npz", (folder / "meta.npz").read_bytes().index(b'"key"')),
    "meta of another": lambda folder: np.savez(folder / "meta.npz", header=np.zeros(3)),
    "other version": _other_version,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_rebuilt(files: list[Path], cache: Path, damage: str) -> None:
    folder = load(files, cache).folder
    DAMAGE[damage](folder)
    prepared = load(files, cache, listener=(listener := Listener()))
    assert prepared.folder == folder
    assert whole(prepared, range(20))
    assert prepared.kept.tolist() == list(range(20))
    assert len(listener.notes) == 2
    assert re.fullmatch(rf"cache {re.escape(str(folder))} is damaged \(.+\): rebuilt", listener.notes[0])
    load(files, cache, listener=(third := Listener()))
    assert third.notes == []
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_any_flipped_byte_of_meta_is_found_or_without_meaning(files: list[Path], cache: Path) -> None:
    files[7].write_bytes(files[7].read_bytes()[:-60])
    first = load(files, cache)
    build = caches._Build(files, survey(files, cache), RECIPE, cache, Listener())
    content = (first.folder / "meta.npz").read_bytes()
    found = 0
    for place in range(0, len(content), 13):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        (first.folder / "meta.npz").write_bytes(damaged)
        opened = build.open()
        if isinstance(opened, caches.Prepared):
            assert opened.skipped == first.skipped
            for name in ("images", "kept", "sums", "squares"):
                assert np.array_equal(getattr(opened, name), getattr(first, name))
        found += isinstance(opened, str)
    assert found > 100


def test_checksums_of_several_chunks(files: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "READ", 250)
    monkeypatch.setattr(caches, "CRC_CHUNK", 1000)
    folder = load(files, cache).folder
    assert len(np.load(folder / "meta.npz")["crcs"]) == 4  # of 3968 bytes
    for place in (0, 999, 1000, 2500, 3967):
        _flip(folder / "images.npy", place)
        load(files, cache, listener=(listener := Listener()))
        assert "is damaged" in listener.notes[0]


# --- several processes ---


def _build_in_a_process(folder: str, cache: str, gate: object, answers: object) -> None:
    files = sorted(Path(folder).iterdir())
    count = 0
    real = decode.prepare_file

    def slow(*arguments: object) -> np.ndarray:
        nonlocal count
        count += 1
        time.sleep(0.02)
        return real(*arguments)  # type: ignore[arg-type]

    decode.prepare_file = slow  # type: ignore[assignment]
    listener = Listener()
    facts = survey(files, Path(cache))
    gate.wait()  # type: ignore[attr-defined]
    prepared = prepared_images(files, facts, RECIPE, Path(cache), listener)
    answers.put((count, prepared.images.tobytes(), listener.notes))  # type: ignore[attr-defined]


def test_two_processes_build_once(files: list[Path], cache: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    gate, answers = spawn.Barrier(2), spawn.Queue()
    both = [
        spawn.Process(target=_build_in_a_process, args=(str(files[0].parent), str(cache), gate, answers))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    (waited, theirs, notes), (built, ours, _) = sorted((answers.get(timeout=60) for _ in both), key=lambda a: a[0])
    for process in both:
        process.join(timeout=60)
    assert (waited, built) == (0, 20)
    assert notes == ["waiting for another process that prepares the same images"]
    assert theirs == ours == np.stack([picture(n) for n in range(20)]).tobytes()
    assert len(entries(cache)) == 1


KILLED = """
import sys, time
from pathlib import Path
from interlude_fast.data import cache, decode
from interlude_fast.data.images import Recipe
folder, where = map(Path, sys.argv[1:])
real = decode.prepare_file
def slow(*arguments):
    time.sleep(0.05)
    return real(*arguments)
decode.prepare_file = slow
files = sorted(folder.iterdir())
cache.prepared_images(files, cache.survey(files, where), Recipe(8, 3), where)
"""


def test_killed_in_the_middle(files: list[Path], cache: Path, tmp_path: Path) -> None:
    images = cache / "images"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(files[0].parent), str(cache)], cwd=ROOT)
    until = time.monotonic() + 30
    while not list(images.glob("*.partial/images.npy")):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    # While that one builds, nobody removes its folder, not even to make another key.
    load(files[:3], cache)
    assert len(list(images.glob("*.partial"))) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(images.glob("*.partial"))) == 1
    assert len(entries(cache)) == 1
    assert whole(load(files, cache), range(20))
    assert len(list(images.iterdir())) == len(entries(cache)) == 2


def test_what_a_killed_builder_of_another_key_left_is_removed_too(files: list[Path], cache: Path) -> None:
    left = cache / "images" / f"{'ab' * 32}.1.00000000.partial"
    left.mkdir(parents=True)
    (left / "images.npy").write_bytes(b"half")
    load(files, cache)
    assert not left.exists()


def test_an_error_in_the_middle_leaves_nothing(
    files: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(decode, "prepare_file", broken)
    with pytest.raises(KeyboardInterrupt):
        load(files, cache)
    assert list((cache / "images").iterdir()) == []


# --- the disk ---

Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_said_before_building(
    files: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(files[:3], cache)
    before = sorted(cache.rglob("*.np?"))
    facts = survey(files, cache)
    paths = decoded(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(DataError) as caught:
        prepared_images(files, facts, RECIPE, cache)
    assert re.fullmatch(
        rf"cache folder {re.escape(str(cache))} has no room: 1\.05 MB needed, 5 kB free; "
        r"choose another folder with --set data\.cache=DIR or INTERLUDE_FAST_CACHE=DIR",
        str(caught.value),
    )
    assert paths == []
    assert sorted(path for path in cache.rglob("*.np?") if "index" not in path.parts) == [
        path for path in before if "index" not in path.parts
    ]


@pytest.mark.parametrize(("code", "more"), [(errno.ENOSPC, ""), (errno.EDQUOT, ", and a quota is reached")])
@pytest.mark.parametrize("function", ["posix_fallocate", "pwrite"])
def test_a_disk_that_fills_up(
    files: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int, more: str
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(
            DataError, match=rf"has no room: 1\.05 MB needed, .* free{more}; choose another folder"
        ):
            load(files, cache)
    assert list((cache / "images").iterdir()) == []
    assert whole(load(files, cache), range(20))


def test_a_file_system_without_reservation(
    files: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert whole(load(files, cache), range(20))


def test_a_cache_that_is_no_folder(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"cache folder .*taken cannot be written: .*INTERLUDE_FAST_CACHE=DIR$"):
        load(files, tmp_path / "taken", listener=(listener := Listener()))
    assert "files are read again next time" in listener.notes[0]


def test_a_cache_that_cannot_be_reached(files: list[Path], tmp_path: Path) -> None:
    beyond = tmp_path / ("x" * 300)  # even root may not look there
    for call in (lambda: load(files, beyond), lambda: entries(beyond), lambda: remove(beyond)):
        with pytest.raises(DataError, match=r"cache folder .* cannot be (read|written): File name too long"):
            call()


def test_a_cache_that_may_not_be_looked_into(
    files: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = survey(files, cache)

    def denied(*arguments: object, **options: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", denied)
    for call in (
        lambda: prepared_images(files, facts, RECIPE, cache),
        lambda: entries(cache),
        lambda: remove(cache),
    ):
        with pytest.raises(DataError, match=r"cache folder .* cannot be read: Permission denied; choose another"):
            call()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_not_be_written(files: list[Path], cache: Path) -> None:
    cache.mkdir(mode=0o500)
    with pytest.raises(DataError, match=r"cache folder .* cannot be written: Permission denied"):
        load(files, cache)


# --- house-keeping ---


def test_entries_and_removal(files: list[Path], cache: Path) -> None:
    assert entries(cache) == remove(cache) == []
    first, second = load(files, cache), load(files[:5], cache, Recipe(16, 1))
    os.utime(first.folder, (2e9, 2e9))
    one, two = entries(cache)
    assert (one.key, one.images, one.size, one.channels, one.last_used) == (first.folder.name, 20, 8, 3, 2e9)
    assert (two.key, two.images, two.size, two.channels) == (second.folder.name, 5, 16, 1)
    assert one.bytes == sum(file.stat().st_size for file in first.folder.iterdir())
    assert abs(two.last_used - time.time()) < 60
    for wrong in ("nonsense", "", "../images", ".."):
        with pytest.raises(DataError, match="no entry"):
            remove(cache, wrong)
    assert remove(cache, one.key[:12]) == [one]
    assert whole(first, range(20))  # who has it open keeps it
    assert entries(cache) == [two]
    assert remove(cache) == [two]
    assert list((cache / "images").iterdir()) == []
    assert not (cache / "index").exists()


def test_damaged_entries_are_listed_and_removed(files: list[Path], cache: Path) -> None:
    folder = load(files, cache).folder
    (folder / "images.npy").write_bytes(b"")
    assert [(entry.key, entry.images) for entry in entries(cache)] == [(folder.name, 0)]
    assert len(remove(cache, folder.name)) == 1
    assert entries(cache) == []


def test_a_file_system_without_locks(files: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object, **options: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(storage.FileLock, "acquire", unsupported)
    with pytest.raises(DataError, match="lies on a file system without locks; choose another folder"):
        load(files, cache)


def test_names_that_are_no_text(tmp_path: Path, cache: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff\nname.png")
    Image.fromarray(picture(0)).save(odd)
    os.utime(odd, (1e9, 1e9))
    facts = survey([odd], cache)
    assert survey([odd], cache, listener := Listener()) == facts
    assert listener.totals == {}
    assert whole(load([odd], cache), [0])
    odd.write_bytes(b"changed")
    with pytest.raises(DataError, match="changed while images") as caught:
        prepared_images([odd], facts, Recipe(9, 3), cache)
    assert "odd\\udcff\\nname.png" in str(caught.value)
    str(caught.value).encode()


def test_what_is_being_built_is_not_removed(files: list[Path], cache: Path) -> None:
    key = load(files, cache).folder.name
    with caches.lock(cache, key), pytest.raises(DataError, match="is being built"):
        remove(cache, key)
    assert [entry.key for entry in entries(cache)] == [key]


def test_opening_counts_as_use(files: list[Path], cache: Path) -> None:
    folder = load(files, cache).folder
    os.utime(folder, (1e9, 1e9))
    load(files, cache)
    assert entries(cache)[0].last_used > 1.5e9


def test_default_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("INTERLUDE_FAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache() == tmp_path / ".cache" / "interlude-fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/interlude-fast")
    monkeypatch.setenv("INTERLUDE_FAST_CACHE", "~/mine")
    assert default_cache() == tmp_path / "mine"
    monkeypatch.setenv("INTERLUDE_FAST_CACHE", "~nobody-here/x")
    with pytest.raises(DataError, match=r"cache folder ~nobody-here/x: no such home folder; choose another"):
        default_cache()


def test_home_in_the_name_of_a_cache(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    prepared = load(files, Path("~/mine"))
    assert prepared.folder.parent == tmp_path / "home" / "mine" / "images"
    assert (tmp_path / "home" / "mine" / "index").is_dir()
    assert not (tmp_path / "~").exists()
    assert [e.key for e in entries(Path("~/mine"))] == [e.key for e in remove(Path("~/mine"))] != []


# --- progress ---


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_terminals_one_line_elsewhere(files: list[Path], cache: Path, terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200)
    progress = RichProgress(console)
    prepared_images(files, survey(files, cache, progress), RECIPE, cache, progress)
    if terminal:
        assert "preparing images at 8 px" in out.getvalue()
    else:
        assert re.fullmatch(r"prepared 20 images at 8 px in \d+\.\d s; cache \S+\n", out.getvalue())
