"""Names for the parts of an asset and for files that line-based formats refer to. Knows nothing of files.

OBJ and MTL separate words by blanks, begin comments with `#` and options with `-`; some readers take only ASCII, and
Windows reserves some names. A name that keeps to letters, digits, `_`, `-` and `.` inside is one word in every format.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

MAX_NAME_CHARS = 64
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
"""Names that Windows gives to devices, with any extension.
Source: https://learn.microsoft.com/windows/win32/fileio/naming-a-file."""
_LETTERS = str.maketrans(
    {"ß": "ss", "ẞ": "SS", "Æ": "AE", "æ": "ae", "Œ": "OE", "œ": "oe", "Ø": "O", "ø": "o", "Ł": "L", "ł": "l"}
    | {"Đ": "D", "đ": "d", "Ð": "D", "ð": "d", "Þ": "Th", "þ": "th", "ı": "i"}
)
"""Latin letters that Unicode does not decompose."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def safe_name(text: str) -> str:
    """A name that every format and file system reads as one word, made of a user's file name.

    Letters lose their accents; every run of other characters becomes `_`; `-`, `.` and `_` at its ends vanish.
    A name that is safe already stays as it is. `asset` where there is nothing. Where letters are lost or the name is
    cut, a hash of the text follows: files of one folder that share the rest of a name do not share companions.
    """
    letters = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    whole = re.sub(r"[^A-Za-z0-9_.-]+", "_", letters.encode("ascii", "ignore").decode()).strip("-._")
    name = whole[:MAX_NAME_CHARS].rstrip("-._")
    is_lost = any(not sign.isascii() and (sign.isalnum() or not name) for sign in letters)
    if is_lost or name != whole:
        digest = hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{name[: MAX_NAME_CHARS - 9] or 'asset'}_{digest[:8]}"
    if not name:
        return "asset"
    return f"asset_{name}"[:MAX_NAME_CHARS].rstrip("-._") if name.split(".")[0].lower() in RESERVED else name


def is_random_name(text: str) -> bool:
    """Whether the text is a UUID, as the service names its files: it says nothing of the asset."""
    return _UUID.fullmatch(text) is not None
