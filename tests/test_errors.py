"""Foreign exceptions become errors of the tree, in one place and with one result per kind."""

from __future__ import annotations

import errno

import pytest

from pipeline.errors import (
    Cancelled,
    DiskFull,
    EngineFailed,
    ExportFailed,
    ImageTo3DError,
    OutOfMemory,
    StageError,
    is_caller_error,
    translate,
)


@pytest.mark.parametrize(
    ("error", "becomes", "message"),
    [
        (ValueError("shapes (3,) and (4,)"), ExportFailed, "export failed for an internal reason (ValueError)"),
        (MemoryError("12 GB"), OutOfMemory, "export failed: out of memory"),
        (OSError(errno.ENOSPC, "full"), DiskFull, "export failed: no space left on the device"),
        (OSError(errno.EDQUOT, "quota"), DiskFull, "export failed: no space left on the device"),
        (OSError(errno.EACCES, "/a/path/inside"), ExportFailed, "export failed: Permission denied"),
        (OSError("a library's own text"), ExportFailed, "export failed for an internal reason (OSError)"),
    ],
)
def test_a_foreign_exception_says_what_failed_and_nothing_of_the_inside(
    error: Exception, becomes: type[ImageTo3DError], message: str
) -> None:
    translated = translate(error, where="export", otherwise=ExportFailed)

    assert (type(translated), str(translated)) == (becomes, message)
    assert translated.__cause__ is error


@pytest.mark.parametrize("error", [Cancelled("stop"), EngineFailed("no surface"), StageError("failed")])
def test_an_error_of_the_tree_is_returned_unchanged(error: ImageTo3DError) -> None:
    assert translate(error, where="export", otherwise=ExportFailed) is error


def test_caller_errors_are_recognised_by_their_code() -> None:
    assert is_caller_error("invalid_request") and is_caller_error("rate_limited")
    assert not is_caller_error("engine_failed") and not is_caller_error("store_unavailable") and not is_caller_error("")
