"""The table of fields: complete, and what the options of the command lines are made from."""

from __future__ import annotations

from schemas.formats import OUTPUT_FORMATS
from schemas.request import ImageTo3DRequest
from schemas.table import NOT_OPTIONS, field_rows, option_rows


def test_every_field_is_an_option_unless_a_rule_excludes_it() -> None:
    assert {row.name for row in option_rows()} == ImageTo3DRequest.model_fields.keys() - NOT_OPTIONS
    assert {
        "key",
        "temp",
        "webhook",
        "track_id",
        "retention_s",
        "image",
        "output_format",
        "output_formats",
    } == NOT_OPTIONS


def test_the_help_of_an_option_has_effect_bounds_and_default() -> None:
    rows = {row.name: row for row in option_rows()}

    assert rows["texture_size"].option == "--texture-size"
    assert rows["texture_size"].option_help == "Side of the texture in pixels (512–4096; default: 1024)"
    assert rows["multi_image_mode"].option_help.endswith(" (stochastic, multidiffusion)")
    assert rows["no_texture"].option_help == "Export without a texture"


def test_the_output_formats_are_those_of_the_field() -> None:
    (row,) = [row for row in field_rows() if row.name == "output_format"]
    assert row.bounds == ", ".join(OUTPUT_FORMATS)


def test_a_boolean_that_is_on_by_default_is_the_only_one_that_a_command_can_switch_off() -> None:
    assert [row.name for row in option_rows() if row.is_on_by_default] == ["remove_bg"]
