"""Check a folder that this program has written against what it recorded of it."""

from __future__ import annotations

from pathlib import Path

from efficientllava.database.solutions import MANIFEST, open_database
from efficientllava.errors import UserError
from efficientllava.files import DIGESTS, read_json, read_sealed, require_sealed


def verify(folder: Path) -> str:
    """Check a pruned or a dense checkpoint, an OBS database, or proxy data.

    Of a pruned checkpoint zeros and sizes are counted, too.

    Returns:
        What was found, in words.

    Raises:
        UserError: a file is not as it was written, or not as its record says; nothing is recorded.
    """
    if (folder / "pruning.json").is_file():
        return _verify_pruned(folder)
    if (folder / MANIFEST).is_file():
        return _verify_manifest(folder)
    if not (folder / DIGESTS).is_file():
        raise UserError(
            "holds no record to compare with: no pruning.json, digests.json or manifest.json",
            where=str(folder),
            remedy="name a checkpoint, a database or proxy data that this program has written",
        )
    return f"{folder}: {require_sealed(folder)} files as they were written"


def _verify_manifest(folder: Path) -> str:
    manifest = read_sealed(folder / MANIFEST)
    if "matrices" in manifest:
        opened = open_database(folder, check=True)
        return (
            f"{folder}: {len(manifest['files'])} files with {len(opened.tensors)} tensors "
            "as they were written"
        )
    from efficientllava.data.proxy import load_proxy

    load_proxy(folder)
    return f"{folder}: {len(manifest['files'])} files as they were written"


def _verify_pruned(folder: Path) -> str:
    from efficientllava.models.checkpoint import load_model
    from efficientllava.models.families import adapter_for
    from efficientllava.pruning import sequential
    from efficientllava.pruning.structured import structured
    from efficientllava.sparse.record import packed_settings

    record = read_json(folder / "pruning.json")
    try:
        rows, policy = record["matrices"], record["policy"]
        levels = {row["name"]: row["level"] for row in rows}
        name = f"{record['method']} at {record['ratio']:g}"
    except (KeyError, TypeError) as error:
        raise UserError(f"lacks {error}", where=str(folder / "pruning.json")) from error
    if levels != policy:
        raise UserError("its rows do not follow its policy", where=str(folder / "pruning.json"))
    adapter = adapter_for(load_model(folder))
    require_sealed(folder)
    if (parts := record.get("structure")) is not None:
        structured.verify_structure(adapter, rows, parts)
        share = structured.removed_share(rows, parts)
        return (
            f"{folder}: {name}, {share:.4%} of the decoder's weights are gone, "
            f"{len(adapter.blocks)} blocks with {len(rows)} matrices of the recorded sizes, "
            "all weights finite"
        )
    packed = packed_settings(folder)
    sequential.verify(adapter, rows, rounded=packed is not None and bool(packed.errors))
    share = sequential.achieved_sparsity(rows)
    return (
        f"{folder}: {name}, {len(rows)} matrices with the zeros of their policy "
        f"({share:.4%} of the weights), all weights finite"
    )
