"""Every test of kernels also runs the CUDA ones, on the CPU: device "emulated"."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from interlude_fast import ops
from tests.conftest import DEVICES
from tests.ops import emulation


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        emulated = [] if metafunc.definition.get_closest_marker("rules") else ["emulated"]
        metafunc.parametrize("device", [*DEVICES, *emulated], indirect=True)


@pytest.fixture(scope="session")
def emulated_kernels() -> None:
    if not ops.status().loaded:
        pytest.skip("no compiled extension, so no schemas that kernels could stand behind")
    emulation.build()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param != "emulated":
        yield torch.device(request.param)
        return
    request.getfixturevalue("emulated_kernels")
    with emulation.in_place_of_the_cpu_kernels():
        yield torch.device("cpu")
