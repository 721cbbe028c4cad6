"""Every accelerator that is shipped under the conformance kit."""

from typing import Any

import pytest

from automl.testing.accelerators import AcceleratorConformance
from backends.accelerators.accelerator import Accelerator
from backends.accelerators.catalogue import load, names


class TestShipped(AcceleratorConformance):
    @pytest.fixture(autouse=True, params=names())
    def _named(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param

    def make(self) -> Accelerator[Any]:
        return load(self.name)
