"""`interlude-fast data` and `predict`, as a user calls them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from interlude_fast.cli import main
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Silent
from interlude_fast.evaluation.trained_model import TrainedModel
from interlude_fast.experiment.run import train_run
from tests.helpers import SMALL, flags, image_names, small_config, write_images


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERLUDE_FAST_CACHE", str(tmp_path / "cache"))
    runner = CliRunner()
    return lambda *arguments: runner.invoke(main, [str(a) for a in arguments])


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    for part, each in (("train", 8), ("test", 3)):
        write_images(root, image_names(["cat", "dog"], each, f"{part}/"), (16, 16))
    write_images(root, [f"unlabeled/{i}.png" for i in range(9)], (16, 16))
    return root


def copy(root: Path, dataset: str, target: str, **save: int) -> None:
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    with Image.open(root / dataset) as image:
        image.save(root / target, **save)


def test_inspect_finds_what_is_wrong(call: Callable[..., Result], mine: Path) -> None:
    copy(mine, "train/cat/0.png", "test/cat/leak.png")
    copy(mine, "train/cat/1.png", "train/dog/conflict.png")
    (mine / "unlabeled" / "broken.jpg").write_text("no image")
    done = call("data", "inspect", "--dataset", "folder", "--data-root", mine, "--json", "found.json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(Path("found.json").read_text())
    assert found["roles"] == {"labeled": 17, "unlabeled": 9, "test": 7}
    assert found["classes"]["cat"] == {"labeled": 8, "unlabeled": 0, "test": 4}
    assert found["unreadable"] == [["unlabeled/broken.jpg", "not an image"]] or "unlabeled/broken.jpg" in str(
        found
    )
    assert found["exact"]["counts"] == {"labeled-labeled": 2, "labeled-test": 1, "test-labeled": 1}
    assert found["exact"]["conflicts"] == 1
    assert found["modes"] == {"RGB": 33}
    assert found["sizes"] == {"16x16": 33}
    for text in ("groups of exact duplicates: 2", "1 labeled also in test", "unreadable files: 1", "(no label)"):
        assert text in done.stdout, done.stdout


def test_inspect_finds_near_duplicates_and_leaking_groups(call: Callable[..., Result], tmp_path: Path) -> None:
    smooth = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    rows = ["path,label,group,split"]
    for i, small in enumerate(smooth):
        Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{i % 2},p{i // 3},{'test' if i > 6 else 'train'}")
    copy(tmp_path, "0.png", "again.jpg", quality=60)
    rows.append("again.jpg,0,p9,test")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    done = call("data", "inspect", "--dataset", "csv", "--data-root", "list.csv", "--json", "found.json")
    assert done.exit_code == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["near"]["groups"] == [["0.png (labeled)", "again.jpg (test)"]]
    assert found["leaking_groups"] == {"p2": ["train", "test"]}
    quick = call("data", "inspect", "--dataset", "csv", "--data-root", "list.csv", "--no-near")
    assert "groups of near duplicates: 0" in quick.stdout


def test_a_split_is_written_and_replayed(call: Callable[..., Result], mine: Path) -> None:
    where = ("--dataset", "folder", "--data-root", mine)
    options = (*where, "--labels", "4", "--set", "data.split.validation=4", "--seed", "7")
    done = call("data", "split", *options, "--out", "split.json")
    assert done.exit_code == 0, done.stderr
    assert "4 labeled, 21 unlabeled, 4 validation, 6 test" in done.stdout
    small = {**SMALL, "data": {}}
    ran = call(
        "train",
        *where,
        *flags(small),
        "--steps",
        "2",
        "--split",
        "split.json",
        "--run-dir",
        "run",
        "--device",
        "cpu",
    )
    assert ran.exit_code == 0, ran.stderr
    assert "validation error ema" in ran.stdout
    mine_now, then = (json.loads(Path(f).read_text()) for f in ("run/split.json", "split.json"))
    for part in ("labeled", "validation", "test", "unlabeled", "data"):
        assert mine_now[part] == then[part]
    write_images(mine, ["unlabeled/new.png"])
    again = call("train", *where, *flags(small), "--split", "split.json", "--run-dir", "other")
    assert again.exit_code == 2
    assert "made of other data: it had 31 images, there are 32 now" in again.stderr
    resumed = call("train", "--run-dir", "run", "--resume")
    assert resumed.exit_code == 2
    assert "made of other data" in resumed.stderr
    assert len(resumed.stderr.strip().splitlines()) == 1


def test_a_replayed_split_stays_what_it_was(call: Callable[..., Result], mine: Path) -> None:
    where = ("--dataset", "folder", "--data-root", "mine")
    call("data", "split", *where, "--labels", "6", "--seed", "7", "--out", "split.json")
    again = call("data", "split", *where, "--split", "split.json", "--seed", "1", "--out", "again.json")
    assert again.exit_code == 0, again.stderr
    assert Path("again.json").read_text() == Path("split.json").read_text()
    for more in (("--labels", "6"), ("--set", "data.split.kind=proportional")):
        refused = call("data", "split", *where, "--split", "split.json", *more, "--out", "other.json")
        assert refused.exit_code == 2
        assert "data.split.file says which images are labeled; drop data." in refused.stderr


def test_a_run_goes_on_from_another_folder(
    call: Callable[..., Result], mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths are kept whole; a folder that moved is named anew."""
    parts = ("--labeled", "mine/train", "--unlabeled", "mine/unlabeled", "--test", "mine/test")
    small = flags({**SMALL, "data": {}})
    assert call("train", *parts, *small, "--steps", "4", "--run-dir", "run").exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for arguments in (("train", "--run-dir", "../run", "--resume"), ("eval", "../run")):
        done = call(*arguments)
        assert done.exit_code == 0, done.stderr
    mine.rename(tmp_path / "moved")
    assert "is not a folder" in call("eval", "../run").stderr
    now = [part.replace("mine", "../moved") for part in parts]
    for arguments in (("train", "--run-dir", "../run", "--resume", *now), ("eval", "../run", *now)):
        done = call(*arguments)
        assert done.exit_code == 0, done.stderr


def test_inspect_counts_what_the_split_uses(call: Callable[..., Result], mine: Path) -> None:
    where = ("--dataset", "folder", "--data-root", mine, "--set", "data.split.unlabeled_imbalance=4", "--no-near")
    done = call("data", "inspect", *where, "--labels", "4", "--json", "found.json")
    assert done.exit_code == 0, done.stderr
    # 8 and 2 images of the classes, 9 of none; the labeled ones are among them, counted as labeled
    assert json.loads(Path("found.json").read_text())["roles"] == {
        **{"labeled": 4, "unlabeled": 15, "test": 6, "excluded": 6},
    }


def test_preview_shows_the_views(call: Callable[..., Result]) -> None:
    done = call("data", "preview", "--out", "views.png", "--images", "5")
    assert done.exit_code == 0, done.stderr
    with Image.open("views.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.shape == (5 * 68, 90 + 7 * 68)  # 16 px digits, enlarged to 64
    strong = pixels[:, 90 + 3 * 68 :]
    assert (strong == 127).mean() > 0.15  # the grey squares


def test_cache_is_filled_listed_and_removed(call: Callable[..., Result], mine: Path) -> None:
    assert (
        "31 images, 32 px, prepared in" in call("data", "cache", "--dataset", "folder", "--data-root", mine).stdout
    )
    listed = call("data", "cache", "--list")
    assert "31 images, 32 px, 3 channels" in listed.stdout
    assert call("data", "cache", "--remove", listed.stdout.split()[0]).exit_code == 0
    assert "images," not in call("data", "cache", "--list").stdout
    for key in ("none", ""):
        refused = call("data", "cache", "--remove", key)
        assert refused.exit_code == 2
        assert f"no entry '{key}'" in refused.stderr


def test_a_cache_below_a_home_folder(call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"cache: {Path.home() / 'x'}" in call("data", "cache", "--list", "--set", "data.cache=~/x").stdout
    monkeypatch.setenv("INTERLUDE_FAST_CACHE", "~nobody-here/x")
    refused = call("data", "cache", "--list")
    assert refused.exit_code == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "no such home folder" in refused.stderr


def test_names_that_are_no_text_are_inspected_and_split(call: Callable[..., Result], mine: Path) -> None:
    strange = os.fsdecode(b"dog\xff")
    for part in ("train", "test"):
        (mine / part / "dog").rename(mine / part / strange)
    copy(mine, "train/cat/0.png", "train/cat/two\nlines.png")
    where = ("--dataset", "folder", "--data-root", mine)
    done = call("data", "inspect", *where, "--json", "found.json")
    assert done.exit_code == 0, done.stderr
    assert "dog\\udcff" in done.stdout
    assert "two\\nlines.png (labeled)" in done.stdout
    assert strange in json.loads(Path("found.json").read_text())["classes"]
    assert call("data", "split", *where, "--out", "split.json").exit_code == 0


@pytest.fixture
def run(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLUDE_FAST_CACHE", str(tmp_path / "cache"))
    data = {"dataset": "folder", "root": str(mine), "labels": 8}
    train_run(small_config(data=data, train={"steps": 3}), tmp_path / "run")
    return tmp_path / "run"


def test_predict_is_evaluation_image_by_image(call: Callable[..., Result], run: Path, mine: Path) -> None:
    """Every test image's prediction, one at a time or all at once, gives the run's own test error."""
    done = call("predict", run, mine / "test", "--out", "p.csv", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    rows = list(csv.DictReader(Path("p.csv").read_text().splitlines()))
    assert [r["path"] for r in rows] == [str(mine / "test" / n) for n in sorted(image_names(["cat", "dog"], 3))]
    wrong = sum(r["class"] != Path(r["path"]).parent.name for r in rows) / len(rows)
    assert wrong == pytest.approx(json.loads((run / "result.json").read_text())["scores"]["test"]["ema"]["error"])
    for r in rows:
        assert float(r["p_cat"]) + float(r["p_dog"]) == pytest.approx(1, abs=2e-6)
        assert float(r["probability"]) == max(float(r["p_cat"]), float(r["p_dog"]))
    alone = call("predict", run, rows[2]["path"], "--device", "cpu")
    single = next(csv.DictReader(alone.stdout.splitlines()))
    assert float(single["p_cat"]) == pytest.approx(float(rows[2]["p_cat"]), abs=1e-5)


def test_predict_needs_no_training_data_and_takes_any_image(
    call: Callable[..., Result], run: Path, mine: Path, tmp_path: Path
) -> None:
    mine.rename(tmp_path / "gone")
    write_images(tmp_path / "new", ["wide.png"], (90, 31), mode="L")
    write_images(tmp_path / "new", ["alpha.png"], (20, 50), mode="RGBA")
    (tmp_path / "new" / "text.jpg").write_text("x")
    done = call("predict", run, "new")
    assert done.exit_code == 0, done.stderr
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["path", "new/alpha.png", "new/wide.png"]
    assert "skipped new/text.jpg: " in done.stderr


def test_predict_keeps_the_bytes_of_names(call: Callable[..., Result], run: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "new", ["odd.png"])
    (tmp_path / "new" / "odd.png").rename(tmp_path / "new" / os.fsdecode(b"odd\xff.png"))
    (tmp_path / "new" / "two\nlines.png").write_text("x")
    preprocessing = json.loads((run / "preprocessing.json").read_text())
    preprocessing["classes"] = [os.fsdecode(b"cat\xfe"), "dog"]
    (run / "preprocessing.json").write_text(json.dumps(preprocessing))
    for out in ((), ("--out", "p.csv")):
        done = call("predict", run, "new", "--device", "cpu", *out)
        assert done.exit_code == 0, done.stderr
        content = Path("p.csv").read_bytes() if out else done.stdout_bytes
        assert content.startswith(b"path,class,probability,p_cat\xfe,p_dog\nnew/odd\xff.png,")
        assert "skipped new/two\\nlines.png: not an image" in done.stderr


def test_predict_takes_its_bar_down_after_an_error(run: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    calls: list[str] = []

    class Bar(Silent):
        def start(self, what: str, total: int) -> None:
            calls.append("start")

        def done(self) -> None:
            calls.append("done")

    monkeypatch.setattr(Preprocessing, "normalize", broken)
    model = TrainedModel.load(run, device="cpu")
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        model.predict([mine / "test"], Bar())
    assert calls == ["start", "done"], caught  # while its traceback, and so every frame, is still held


def test_predict_refuses_what_it_cannot_do(call: Callable[..., Result], run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("x")
    for arguments, message in (
        ((run, "nowhere.jpg"), "nowhere.jpg does not exist"),
        ((run, "x" * 300), "cannot be read: File name too long"),
        (("x" * 300, "text.jpg"), "cannot be read: File name too long"),
        ((run, "empty"), "empty holds no image"),
        ((run, "text.jpg"), "none of the 1 images can be read"),
        (("empty", "text.jpg"), "not a run directory"),
        ((run, "text.jpg", "--device", "cuda:7"), "sees"),
    ):
        done = call("predict", *arguments)
        assert done.exit_code == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    os.truncate(run / "preprocessing.json", 20)
    assert "preprocessing.json is missing or damaged" in call("predict", run, "text.jpg").stderr
