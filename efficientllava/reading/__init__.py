"""Files from outside: regular, of a bounded size and depth, with errors that a user can mend."""

from __future__ import annotations

from efficientllava.reading.checkpoints import read_model_config, require_readable
from efficientllava.reading.documents import checked, parse_json, read_json, read_json_lines
from efficientllava.reading.regular import (
    LARGEST_TEXT,
    expanded,
    open_regular,
    read_bytes,
    read_text,
    require_regular,
)
from efficientllava.reading.tensors import (
    TensorReader,
    load_tensors,
    opened_tensors,
    require_floats,
    stored_numbers,
)
from efficientllava.reading.yaml_text import require_plain_yaml

__all__ = [
    "LARGEST_TEXT",
    "TensorReader",
    "checked",
    "expanded",
    "load_tensors",
    "open_regular",
    "opened_tensors",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_model_config",
    "read_text",
    "require_floats",
    "require_plain_yaml",
    "require_readable",
    "require_regular",
    "stored_numbers",
]
