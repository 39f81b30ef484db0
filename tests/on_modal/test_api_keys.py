"""The operator's command for API keys: what a container does, and what the terminal prints."""

from __future__ import annotations

import pytest

from pipeline.on_modal.api_keys import Change, KeyCommand, change, change_from_terminal
from pipeline.settings import Settings
from pipeline.webhooks.signing import WebhookSigner
from tests.reference.memory_store import MemoryStore

MASTER_KEYS = (b"m" * 32,)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def run(store: MemoryStore, **options: str) -> None:
    """The command, with its container in this process."""

    def in_container(command: KeyCommand) -> Change:
        return change(store, MASTER_KEYS, command)

    change_from_terminal(**options, settings=Settings(database_url=None), change=in_container)


def test_a_key_is_made_shown_given_a_new_secret_and_revoked(
    store: MemoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run(store, create="shop")
    run(store, create="other")
    plain, other = capsys.readouterr().out.split()
    key = store.list_keys()[0]
    first = WebhookSigner(MASTER_KEYS).secret_of(key)

    run(store, show="shop")
    shown = capsys.readouterr().out
    assert "other" not in shown and plain not in shown and other not in shown
    assert shown.splitlines()[-1] == f"webhook secret  {first}"

    run(store, rotate_secret="shop")
    printed = capsys.readouterr()
    second = WebhookSigner(MASTER_KEYS).secret_of(store.get_key(key.id))
    assert printed.out == f"{second}\n" and second != first
    assert "both secrets" in printed.err

    run(store, revoke=key.id)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["NAME", "shop", "other"] and rows[1].endswith("revoked")


@pytest.mark.parametrize("option", ["revoke", "show", "rotate_secret"])
def test_an_unknown_name_is_one_sentence_and_exit_code_1(
    store: MemoryStore, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with pytest.raises(SystemExit, match="1"):
        run(store, **{option: "nobody"})

    assert capsys.readouterr().err == "error: There is no active key named 'nobody'.\n"
