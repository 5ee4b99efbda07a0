from __future__ import annotations

from interlude_fast.training.setup import prepare
from tests.helpers import small_config


def test_every_training_image_is_labeled_whatever_the_label_count() -> None:
    few, every = (prepare(small_config(method={"name": name})) for name in ("supervised", "fully_supervised"))
    assert len(few.split.labeled) == 20
    assert len(every.split.labeled) == len(few.split.unlabeled)
