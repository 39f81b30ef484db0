"""What an operator refuses to make: a list of words, and a moderation service that is asked. Both are off by default.

Knows nothing of requests but their texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import structlog

from pipeline.errors import InternalError, PromptRefused, ServiceBusy
from pipeline.settings import Settings

TIMEOUT_S = 5.0
"""A submit waits for the moderation service for so long."""
COMMENT = "#"

log = structlog.get_logger()


def check_prompts(texts: Sequence[str], settings: Settings) -> None:
    """Refuse texts that the operator's rules refuse. Blocks where a moderation service is asked.

    Raises:
        PromptRefused: the list or the service refuses one of the texts.
        ServiceBusy: the service does not answer, or answers something else.
        InternalError: the list cannot be read.
    """
    given = [text for text in texts if text]
    if settings.prompt_blocklist_file is not None:
        pattern = _pattern_of(settings.prompt_blocklist_file)
        if pattern is not None and any(pattern.search(normalised(text)) for text in given):
            raise PromptRefused("the prompt is refused: it holds a word that this deployment does not make assets of")
    if settings.moderation_url is not None and given:
        token = settings.moderation_token
        ask_service(settings.moderation_url, given, token=None if token is None else token.get_secret_value())


def normalised(text: str) -> str:
    """A text in the form in which it is compared: compatible characters and cases as one, no invisible characters."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(each for each in folded if unicodedata.category(each) != "Cf").split())


def blocklist_pattern(lines: Iterable[str]) -> re.Pattern[str] | None:
    """What finds a listed word or phrase, as a whole, in a normalised text; None for an empty list.

    Args:
        lines: one word or phrase each; what begins with `#` is a comment.
    """
    listed = {normalised(line) for line in lines if not line.lstrip().startswith(COMMENT)} - {""}
    if not listed:
        return None
    phrases = sorted(map(re.escape, listed), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)")


def _pattern_of(path: Path) -> re.Pattern[str] | None:
    """The pattern of a file, read again after a change.

    Raises:
        InternalError: it cannot be read.
    """
    try:
        return _read_pattern(path, path.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        log.error("blocklist cannot be read", path=str(path), reason=str(error))
        raise InternalError(
            "the list of words that this deployment refuses cannot be read; its operator has to repair it"
        ) from error


@lru_cache(maxsize=4)
def _read_pattern(path: Path, changed_at_ns: int) -> re.Pattern[str] | None:
    return blocklist_pattern(path.read_text(encoding="utf-8").splitlines())


def ask_service(url: str, texts: Sequence[str], *, token: str | None, timeout_s: float = TIMEOUT_S) -> None:
    """Ask a moderation service about texts: `{"input": [text, …]}`; it answers `{"results": [{"flagged": bool}, …]}`.

    Without an answer no prompt is accepted. The texts are not logged.

    Args:
        token: sent as a bearer token.

    Raises:
        PromptRefused: one of the texts is flagged.
        ServiceBusy: the service does not answer, or answers something else.
    """
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        response = httpx.post(url, json={"input": list(texts)}, headers=headers, timeout=timeout_s)
        answer: Any = response.raise_for_status().json()
        flagged = [bool(result["flagged"]) for result in answer["results"]]
        if len(flagged) != len(texts):
            raise ValueError(f"{len(flagged)} results for {len(texts)} texts")
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        log.warning("moderation service does not answer", reason=f"{type(error).__name__}: {error}")
        raise ServiceBusy("the moderation service does not answer; try again in a moment") from error
    if any(flagged):
        raise PromptRefused("the prompt is refused by the moderation service of this deployment")
