"""YAML without bombs: aliases that expand without end are found before anything is built."""

from __future__ import annotations

import yaml

from efficientllava.errors import UserError

LARGEST = 2**20
"""Bytes of a YAML file."""
NODES = 100_000
"""Values, each counted as often as aliases repeat it."""
DEEPEST = 32


def require_plain_yaml(text: str, where: str) -> None:
    """Check a YAML text before another reader builds its values.

    Raises:
        UserError: it is no YAML; it is nested too deeply; an anchor holds itself, or aliases
            repeat more values than any file of parameters has.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise UserError(f"nested deeper than {DEEPEST} levels", where) from error
    except (yaml.YAMLError, ValueError) as error:
        raise not_yaml(error, where) from error
    if node is not None:
        _count(node, (), {}, where)


def not_yaml(error: BaseException, where: str) -> UserError:
    """What a parser of YAML says, with a remedy for the usual slip."""
    cause = " ".join(str(error).split())[:500]
    quotes = 'text with a colon in a list needs quotes, e.g. ["1:4", "2:4"]'
    return UserError(
        f"not valid YAML ({cause})", where, quotes if "unexpected ':'" in cause else ""
    )


def _count(node: yaml.Node, path: tuple[int, ...], counts: dict[int, int], where: str) -> int:
    """The values of a node, each as often as aliases repeat it."""
    if id(node) in path:
        raise UserError("an anchor holds itself", where, "write the values out")
    if len(path) > DEEPEST:
        raise UserError(f"nested deeper than {DEEPEST} levels", where)
    if id(node) not in counts:
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        below = (*path, id(node))
        counts[id(node)] = 1 + sum(_count(child, below, counts, where) for child in children)
    if counts[id(node)] > NODES:
        raise UserError(f"aliases repeat more than {NODES:,} values", where, "write the values out")
    return counts[id(node)]
