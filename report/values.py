"""Values as they stand in a line: as JSON text, which is counted without being parsed."""

import json
from typing import Any

from files.records import encode

NULL = b"null"
Values = tuple[bytes, ...]  # of several keys


def value_of(text: bytes) -> Any:
    """Return the value of a JSON text; that of no text is None."""
    if text.startswith(b'"') and b"\\" not in text:
        return text[1:-1].decode()  # most texts are such
    return json.loads(text or NULL)


def text_of(value: Any) -> bytes:
    return encode(value).encode("ascii")
