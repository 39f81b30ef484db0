"""Background removal by a model says what it needs."""

from __future__ import annotations

import sys

import pytest

from pipeline.errors import MissingExtra
from pipeline.imaging.rembg_matter import RembgMatter


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(MissingExtra, match=r"image-to-3d\[matting\]"):
        RembgMatter("isnet-general-use")
