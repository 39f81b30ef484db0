"""Fixtures of the fake server's own tests: one server with the sample app for each file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import modal
import pytest

from tests.fakes.modal import Conditions, FakeModal
from tests.fakes.modal.deployed import APP, deployed_sample


@pytest.fixture(scope="module")
def shared_modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeModal]:
    with deployed_sample(tmp_path_factory.mktemp("fake_modal")) as fake_modal:
        yield fake_modal


@pytest.fixture
def fake_modal(shared_modal: FakeModal) -> Iterator[FakeModal]:
    """The server, which is fast and reliable again after the test."""
    yield shared_modal
    shared_modal.conditions = Conditions()


@pytest.fixture(scope="module")
def client(shared_modal: FakeModal) -> Iterator[modal.Client]:
    client = shared_modal.client()
    yield client
    client.close()


@pytest.fixture
def function(client: modal.Client) -> Callable[[str], Any]:
    return lambda name: modal.Function.from_name(APP, name, client=client)


@pytest.fixture
def state(client: modal.Client) -> modal.Dict:
    state = modal.Dict.from_name("sample-state", create_if_missing=True, client=client)
    state.hydrate()
    return state
