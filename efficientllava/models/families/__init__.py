"""Families of models: where each keeps its blocks, matrices and projector."""

from efficientllava.models.families.adapter import (
    Adapter,
    adapter_for,
    device_of,
    require_head,
    text_inputs,
)
from efficientllava.models.families.matrices import Matrix, replace_weights
from efficientllava.models.families.table import (
    DECODER_GROUPS,
    FOUND,
    OURS,
    Family,
    family_of,
    known_families,
    require_family,
)
from efficientllava.registry import FAMILIES

__all__ = [
    "DECODER_GROUPS",
    "FAMILIES",
    "FOUND",
    "OURS",
    "Adapter",
    "Family",
    "Matrix",
    "adapter_for",
    "device_of",
    "family_of",
    "known_families",
    "replace_weights",
    "require_family",
    "require_head",
    "text_inputs",
]
