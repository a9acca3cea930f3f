"""The command `efficientllava families`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from efficientllava.registry import FAMILIES


def print_families() -> None:
    """A line for each family of models that can be pruned."""
    table = Table("model_type", "kind", "image in a prompt", "special")
    for name in sorted(FAMILIES, key=lambda name: (not FAMILIES[name].takes_images, name)):
        family = FAMILIES[name]
        table.add_row(name, family.kind, family.image_token.replace("[", r"\["), family.note)
    Console().print(table)
