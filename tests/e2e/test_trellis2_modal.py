"""The tiny TRELLIS.2 on a fake Modal server: every format, and the effect of every field."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.e2e.test_modal_deployment import SUBMIT, post, run_modal, running_modal, until_final
from tests.e2e.test_trellis2_service import FIELDS, FORMATS, OF_SHAPE, OF_TEXTURE, WITHOUT_EFFECT
from tests.fakes.modal import reason_unavailable

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.xdist_group("fake_modal"),
    pytest.mark.skipif(reason_unavailable() is not None, reason=str(reason_unavailable())),
]
EVERY_FORMAT = {"output_formats": list(FORMATS)}
NAMED_AFTER_CONTENT = ("glb", "stl", "ply", "3mf")
"""Formats whose files name no other file, which would have the job's own prefix."""


def test_trellis2_delivers_every_format_and_follows_its_fields(tmp_path: Path) -> None:
    of_shape = {name: {**change, "no_texture": True} for name, change in {"shape": {}, **OF_SHAPE}.items()}
    without_effect = {name: {**change, "no_texture": True} for name, change in WITHOUT_EFFECT.items()}
    jobs = {"first": EVERY_FORMAT, "second": EVERY_FORMAT, **OF_TEXTURE, **of_shape, **without_effect}
    with running_modal(tmp_path) as fake_modal:
        run_modal(fake_modal, "deploy", "modal_app.py", IMAGE_TO_3D_ENGINE="trellis2", IMAGE_TO_3D_ENGINES="")
        finals = {}
        for name, change in jobs.items():  # one after another: each at the same time would start its own containers
            submitted = post(fake_modal, SUBMIT, **FIELDS | change).json()
            finals[name] = until_final(fake_modal, submitted["id"])
        files = {
            name: {link.split("?")[0].rsplit(".", 1)[1]: httpx.get(link).content for link in final.get("output", ())}
            for name, final in finals.items()
        }

    assert {final["status"] for final in finals.values()} == {"success"}, finals
    assert finals["first"]["meta"]["engine"] == "trellis2"
    assert set(FORMATS) <= files["first"].keys()
    for name in NAMED_AFTER_CONTENT:
        assert files["first"][name] == files["second"][name], name
    models = {name: each["glb"] for name, each in files.items()}
    for group in (("first", *OF_TEXTURE), tuple(of_shape)):
        assert len({models[name] for name in group}) == len(group)
    for name in without_effect:
        assert models[name] == models["shape"], name
