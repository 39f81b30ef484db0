"""Names that every format reads as one word."""

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.names import MAX_NAME_CHARS, RESERVED, is_random_name, safe_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("robot", "robot"),
        ("robot-2_final.v3", "robot-2_final.v3"),
        ("my robot", "my_robot"),
        ("my  robot", "my_robot"),
        ("car -s 2", "car_-s_2"),
        ("-s", "s"),
        ("Grün Käfer", "Grun_Kafer"),
        ("fig #2 50%", "fig_2_50"),
        ("Größe Łódź Ærø", "Grosse_Lodz_AEro"),
        ("fig – 2 “final”", "fig_2_final"),
        ("机器人", "asset_a4d14414"),
        ("机器人 2", "2_fffc0b95"),
        ("🦊", "asset_0a9f72e8"),
        ("Mu\u0308ller", "Muller"),
        ("", "asset"),
        ("..", "asset"),
        ("con", "asset_con"),
        ("NUL.backup", "asset_NUL.backup"),
        ("a\nb\\c/d:e", "a_b_c_d_e"),
    ],
)
def test_names_become_one_word(text: str, name: str) -> None:
    assert safe_name(text) == name


@given(st.text(max_size=100))
def test_every_name_is_safe_and_stays_as_it_is(text: str) -> None:
    name = safe_name(text)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) and not name.endswith(".")
    assert len(name) <= MAX_NAME_CHARS
    assert name.split(".")[0].lower() not in RESERVED
    assert safe_name(name) == name


def test_files_of_one_folder_do_not_share_a_name() -> None:
    texts = [
        "机器人",
        "狐狸",
        "🦊",
        "🐺",
        "机器人 2",
        "狐狸 2",
        "Лиса",
        "Волк",
        "a" * 64 + "b",
        "a" * 64 + "c",
        "a" * 64,
    ]
    assert len({safe_name(text) for text in texts}) == len(texts)
    assert safe_name("Caf\u00e9 \u732b") == safe_name("Cafe\u0301 \u732b")  # one name, composed or not


def test_a_uuid_says_nothing_of_the_asset() -> None:
    assert is_random_name(str(uuid.uuid4())) and not is_random_name("robot")
