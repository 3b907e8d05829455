"""One warm parent for all short lives of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crash.nursery import Nursery


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    found = Nursery(tmp_path_factory.mktemp("lives"))
    yield found
    found.close()
