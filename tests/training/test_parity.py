"""The released code's steps, replayed (docs/parity.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from interlude_fast import ops
from interlude_fast.errors import InterludeError
from interlude_fast.training.parity import TOLERANCE, build_state, read_golden, replay

GOLDEN = Path(__file__).parent.parent / "golden"
FILES = sorted(GOLDEN.glob("interlude_*step_*.npz"), key=lambda f: ("plus" in f.stem, f.stem))
PLUS = FILES[-1]
QUANTITIES = {
    *("loss total", "loss labeled", "loss unlabeled", "loss delta", "gradients", "weights", "buffers"),
    *("EMA weights", "EMA buffers", "eval logits with fusion", "eval logits without fusion"),
}
OF_PLUS = {"loss fairness", "state"}


def test_all_goldens_are_here() -> None:
    names = ["interlude_step_mean", "interlude_step_per_class", "interlude_plus_step_per_class"]
    assert [f.stem for f in FILES] == names


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "reference"])
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_parity_with_the_released_code(file: Path, fused: bool) -> None:
    if fused and not ops.status().loaded:
        pytest.skip(f"no compiled extension: {ops.status().why_not}")
    differences = replay(file, fused)
    assert differences.keys() == QUANTITIES | (OF_PLUS if file == PLUS else set())
    assert max(differences.values()) <= TOLERANCE, differences


def altered(tmp_path: Path, name: str, file: Path = FILES[0], **changes: object) -> Path:
    with np.load(file) as golden:
        content = dict(golden)
    meta = json.loads(str(content["meta"]))
    for key, value in changes.items():
        if key in content:
            content[key] = value
        else:
            meta[key] = value
    content["meta"] = np.array(json.dumps(meta))
    np.savez(tmp_path / name, **content)
    return tmp_path / name


def test_state_begins_in_float64(tmp_path: Path) -> None:
    """1 / 3 in float32 would be 3e-8 off; 1 / 4, which the recording has, is exact in both."""
    classifier = {"init/fc.weight": np.zeros((3, 64)), "init/fc.bias": np.zeros(3)}
    state = build_state(read_golden(altered(tmp_path, "golden.npz", PLUS, num_classes=3, **classifier)))
    for name, value in state.method.state_dict().items():
        assert set(value.flatten().tolist()) == {1 / 3}, name


def test_parity_notices_a_wrong_number(tmp_path: Path) -> None:
    for changes, quantity in (
        ({"lambda_dc": 1.001}, "loss total"),
        ({"alpha": 0.1001}, "gradients"),
        ({"lr": 0.030001}, "weights"),
        ({"weight_decay": 5.001e-4}, "weights"),
        ({"ema_decay": 0.99901}, "EMA weights"),
        ({"bn_momentum": 0.00101}, "buffers"),
    ):
        assert replay(altered(tmp_path, "golden.npz", **changes), fused=False)[quantity] > TOLERANCE, changes


def test_parity_notices_a_wrong_number_of_interlude_plus(tmp_path: Path) -> None:
    for changes, quantity in (
        ({"lambda_f": 0.0501}, "loss total"),
        ({"threshold_momentum": 0.99901}, "state"),
        ({"state/label_hist": np.full(4, 0.25)}, "state"),
        ({"step1/loss_fairness": np.array(-15.5)}, "loss fairness"),
    ):
        file = altered(tmp_path, "golden.npz", PLUS, **changes)
        assert replay(file, fused=False)[quantity] > TOLERANCE, changes
    with np.load(PLUS) as golden:
        for left in ("state/tau", "step0/loss_fairness"):
            np.savez(tmp_path / "short.npz", **{n: golden[n] for n in golden.files if n != left})
            with pytest.raises(InterludeError, match=left.removeprefix("state/")):
                replay(tmp_path / "short.npz", fused=False)


def test_numbers_that_are_none_and_names_that_are_missing_do_not_pass(tmp_path: Path) -> None:
    with np.load(FILES[0]) as golden:
        bias, weights = golden["final/fc.bias"].copy(), [n for n in golden.files if n.startswith("ema/")]
    bias[1] = np.nan
    assert replay(altered(tmp_path, "nan.npz", **{"final/fc.bias": bias}), fused=False)["weights"] == float("inf")
    with np.load(FILES[0]) as golden:
        np.savez(tmp_path / "short.npz", **{n: golden[n] for n in golden.files if n not in weights})
    with pytest.raises(InterludeError, match="the network has it and the golden has not"):
        replay(tmp_path / "short.npz", fused=False)


@pytest.mark.parametrize(
    "change", [{"batch": 3}, {"depth": 5}, {"total_steps": 0}, {"steps": "two"}, {"lr": -1}], ids=str
)
def test_settings_that_do_not_fit_get_one_line(tmp_path: Path, change: dict) -> None:
    with pytest.raises(InterludeError) as caught:
        replay(altered(tmp_path, "odd.npz", **change), fused=False)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_goldens(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not a zip")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", meta=np.array([{"a": 1}], dtype=object))
    (tmp_path / "cut.npz").write_bytes(FILES[0].read_bytes()[:5000])
    unknown = altered(tmp_path, "unknown.npz", method="interlude_minus")
    for path in (*(tmp_path / f"{n}.npz" for n in ("text", "other", "pickled", "cut", "missing")), unknown):
        with pytest.raises(InterludeError) as caught:
            replay(path, fused=False)
        assert "\n" not in str(caught.value)
