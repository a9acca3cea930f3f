"""config.json of a model: an object whose numbers a model can have.

transformers makes lists as long as some of these numbers say, before it looks at any weight.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from efficientllava.errors import UserError
from efficientllava.reading.documents import read_json
from efficientllava.reading.regular import LARGEST_TEXT, require_regular

LARGEST = 16 * 2**20
MOST = 2**31 - 1
"""Of any whole number but the base of rotary positions."""
COUNTED = re.compile(r"(.*_)?(layers?|blocks?|depths?|experts?|stages?|levels)$")
MOST_COUNTED = 16_384
"""Of what transformers makes a list of: layers, experts."""
BESIDE = ("*.json", "*.jinja", "vocab.txt", "merges.txt", "*.model")
"""Configuration, tokenizer and processor."""
SAME = "take config.json from where the weights come from"


def require_readable(folder: Path) -> None:
    """Check the files beside the weights that transformers opens by their names.

    Raises:
        UserError: as `require_regular`: one is a folder, a pipe or a device, or too large.
    """
    for pattern in BESIDE:
        for file in sorted(Path(folder).glob(pattern)):
            require_regular(file, LARGEST_TEXT)


def read_model_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
        UserError: as `read_json`; it is no object, or a number in it is out of bounds.
    """
    file = Path(folder) / "config.json"
    content = read_json(file, LARGEST, constants=True)
    if not isinstance(content, dict):
        raise UserError("holds no JSON object", where=str(file), remedy=SAME)
    _require_bounded(content, "", str(file))
    return content


def _require_bounded(value: Any, field: str, where: str) -> None:
    """Check numbers at every depth; the reader has limited the depth."""
    if isinstance(value, dict):
        for name, item in value.items():
            _require_bounded(item, f"{field}.{name}" if field else name, where)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _require_bounded(item, f"{field}.{number}", where)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        name = re.sub(r"(\.\d+)+$", "", field).rpartition(".")[2]
        counted = COUNTED.fullmatch(name) is not None
        most = MOST_COUNTED if counted else MOST
        whole = isinstance(value, int) and "theta" not in name
        if (whole or counted) and abs(value) > most:
            raise UserError(f"{field} is {value}, beyond {most}", where, SAME)
