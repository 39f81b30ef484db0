"""What an operator refuses: a list of words, and a moderation service."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InternalError, PromptRefused, ServiceBusy
from pipeline.moderation import blocklist_pattern, check_prompts, normalised
from pipeline.settings import Settings

WORDS = ["# a comment", "", "Sword", "red dragon", "c++"]


@pytest.mark.parametrize(
    "text",
    [
        "a sword",
        "SWORD!",
        "(sword)",
        "a ｓｗｏｒｄ",
        "a sw\u200bord",
        "red\n  Dragon",
        "the c++ logo",
        "a-sword-like thing",
    ],
)
def test_a_listed_word_is_found_in_any_case_and_form(text: str) -> None:
    pattern = blocklist_pattern(WORDS)

    assert pattern is not None and pattern.search(normalised(text))


@pytest.mark.parametrize("text", ["swordfish", "passwords", "a red and a dragon", "a comment", "c", ""])
def test_other_words_are_not_found(text: str) -> None:
    pattern = blocklist_pattern(WORDS)

    assert pattern is not None and not pattern.search(normalised(text))


def test_an_empty_list_refuses_nothing() -> None:
    assert blocklist_pattern(["# nothing", "  "]) is None


def test_both_texts_are_compared_with_the_list_and_the_refusal_does_not_repeat_the_word(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("sword\n")
    settings = Settings(prompt_blocklist_file=path)

    check_prompts(("a chair", ""), settings)
    for texts in (("a sword", ""), ("a chair", "no sword")):
        with pytest.raises(PromptRefused) as caught:
            check_prompts(texts, settings)
        assert "sword" not in str(caught.value)


def test_a_changed_list_is_read_again_and_one_that_is_gone_refuses_all(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("sword\n")
    settings = Settings(prompt_blocklist_file=path)
    check_prompts(("a chair",), settings)

    path.write_text("chair\n")
    os.utime(path, ns=(1, 1))
    with pytest.raises(PromptRefused):
        check_prompts(("a chair",), settings)
    path.unlink()
    with pytest.raises(InternalError, match="cannot be read"):
        check_prompts(("a table",), settings)


def test_nothing_is_asked_or_read_by_default() -> None:
    settings = Settings()

    assert (settings.prompt_blocklist_file, settings.moderation_url) == (None, None)
    check_prompts(("anything",), settings)


class Moderator(BaseHTTPRequestHandler):
    """Flags what holds the word "bad"; answers as `answer` says where that is set."""

    asked: list[tuple[Any, str | None]] = []  # noqa: RUF012 - reset by the fixture
    answer: tuple[int, bytes] | None = None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Moderator.asked.append((body, self.headers.get("authorization")))
        flags = json.dumps({"results": [{"flagged": "bad" in text} for text in body["input"]]}).encode()
        status, content = Moderator.answer or (200, flags)
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def moderator() -> Iterator[str]:
    Moderator.asked, Moderator.answer = [], None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moderator)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/check"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_moderation_service_is_asked_about_the_given_texts(moderator: str) -> None:
    settings = Settings(moderation_url=moderator, moderation_token="a-token")  # type: ignore[arg-type]

    check_prompts(("a chair", ""), settings)
    with pytest.raises(PromptRefused, match="by the moderation service"):
        check_prompts(("a chair", "bad"), settings)

    assert Moderator.asked == [
        ({"input": ["a chair"]}, "Bearer a-token"),
        ({"input": ["a chair", "bad"]}, "Bearer a-token"),
    ]


@pytest.mark.parametrize(
    "answer", [(500, b""), (200, b"no json"), (200, b"{}"), (200, b'{"results": []}'), (200, b"[]")]
)
def test_without_an_answer_no_prompt_is_accepted(moderator: str, answer: tuple[int, bytes]) -> None:
    Moderator.answer = answer

    with pytest.raises(ServiceBusy, match="moderation service does not answer"):
        check_prompts(("a chair",), Settings(moderation_url=moderator))


def test_a_service_that_cannot_be_reached_accepts_no_prompt() -> None:
    with pytest.raises(ServiceBusy):
        check_prompts(("a chair",), Settings(moderation_url="http://127.0.0.1:9/"))
