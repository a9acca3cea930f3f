"""The database: every prunable matrix's OBS solution at every level, from one calibration pass.

A candidate policy is then stitched from it and costs a forward pass (method.md section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from efficientllava.calibration.block_walk import BlockWalk, GroupHessian, block_walk
from efficientllava.data.proxy import ProxyData
from efficientllava.database import storage
from efficientllava.database.solutions import MANIFEST, block_file, level_key
from efficientllava.files import (
    DamagedFile,
    file_digest,
    read_sealed,
    save_tensors,
    value_digest,
    write_sealed,
)
from efficientllava.kernels.hessian import InverseFactor, inverse_factor, relative_errors
from efficientllava.kernels.obs import prune_levels
from efficientllava.models.families import Adapter
from efficientllava.parameters import ObsParameters
from efficientllava.progress import Event, Progress, silent


def solve_group(
    group: GroupHessian,
    levels: Sequence[float],
    parameters: ObsParameters,
    importance: Mapping[str, torch.Tensor] | None = None,
) -> tuple[list[list[torch.Tensor]], InverseFactor]:
    """The solutions [matrix][level] of matrices that share an input, and the factor used.

    Args:
        importance: of each matrix's rows [out], by name; None counts all rows alike.
    """
    dtype = getattr(torch, parameters.precision)
    factor = inverse_factor(
        group.hessian, parameters.damping, group.name, group.tokens, dtype=dtype
    )
    weights = [matrix.weight for matrix in group.matrices]
    solutions = prune_levels(
        weights,
        factor,
        levels,
        parameters.block_size,
        parameters.group_size,
        parameters.kernel,
        None if importance is None else [importance[each.name] for each in group.matrices],
    )
    return solutions, factor


def build_database(  # noqa: PLR0913 what decides the solutions, and where they go
    adapter: Adapter,
    proxy: ProxyData,
    levels: Sequence[float],
    parameters: ObsParameters,
    folder: Path,
    work: Path,
    identity: dict[str, Any],
    progress: Progress = silent,
    importance: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Build the database of a dense model.

    A block's file is written and its digest taken while the next block is computed, and it is
    finished before that one's begins; blocks found in the work folder under the same key are not
    computed again.

    Args:
        levels: ratios in [0, 1].
        folder: where the finished database goes, whole or not at all.
        work: where unfinished databases are kept, on the same file system.
        identity: digests (model, proxy, code) that decide whether unfinished work still counts.
        importance: see `solve_group`; what it depends on is part of the identity.

    Returns:
        The manifest: levels, digests of the files and of their tensors, and per matrix and level
        the zeros, the relative output error tr(dW H dW^T) / tr(W H W^T) and the Frobenius norm.

    Raises:
        UserError: a block's record in the work folder is not as it was written.
    """
    levels = [round(level, 4) for level in levels]
    header = {
        "levels": levels,
        "obs": parameters.model_dump(mode="json"),
        **identity,
    }
    unfinished = Path(work) / value_digest(header)[:16]
    walk = block_walk(adapter, proxy, parameters)

    def solve(block: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return _solve_block(walk, block, levels, parameters, importance)

    written = _solve_blocks(walk, solve, unfinished, progress)
    files = {block_file(block): written[block]["file"] for block in sorted(written)}
    manifest = {**header, "matrices": {}, "files": files, "tensors": {}}
    for block in sorted(written):
        manifest["matrices"] |= written[block]["matrices"]
        manifest["tensors"] |= written[block]["tensors"]
    # the blocks stay where a next run finds them until all of the database is there
    write_sealed(unfinished / MANIFEST, manifest)
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(folder)
    for block in written:
        (Path(folder) / _record_of(block)).unlink()
    return manifest


def _record_of(block: int) -> str:
    """Name of a block's record, the sign that its file is whole."""
    return f"block-{block:03d}.json"


def _solve_blocks(
    walk: BlockWalk,
    solve: Callable[[int], tuple[dict[str, Any], dict[str, torch.Tensor]]],
    unfinished: Path,
    progress: Progress,
) -> dict[int, dict[str, Any]]:
    """Solve every block into the unfinished folder: see `_write_block`, by block.

    Args:
        solve: gives the records and tensors of a block that the walk has come to.
    """
    records: dict[int, dict[str, Any]] = {}
    written: Future[dict[str, Any]] | None = None
    total = len(walk.adapter.blocks)

    def finish(block: int) -> None:
        if written is not None:
            records[block] = written.result()
            progress(Event("block", block + 1, total))

    with ThreadPoolExecutor(1) as writer:
        for block in range(total):
            path, record = unfinished / block_file(block), unfinished / _record_of(block)
            solved: tuple[dict[str, Any], dict[str, torch.Tensor]] | None = None
            if not (record.exists() and path.exists()):
                solved = solve(block)
            finish(block - 1)
            if solved is None:
                written = writer.submit(_read_block, path, record)
            else:
                written = writer.submit(_write_block, path, record, *solved)
                del solved
            if block + 1 < total:
                walk.advance(block)
        finish(total - 1)
    return records


def _write_block(
    path: Path, record_file: Path, matrices: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Write a block's solutions, then its record as the sign that they are there.

    Returns:
        The record: `matrices` by name, the digest of the `file` and of its `tensors` by key.
    """
    tensors = {key: tensor.cpu() for key, tensor in tensors.items()}
    save_tensors(path, tensors)
    digests = {key: storage.tensor_digest(tensor) for key, tensor in tensors.items()}
    record = {"matrices": matrices, "file": file_digest(path), "tensors": digests}
    write_sealed(record_file, record)
    return record


def _read_block(path: Path, record_file: Path) -> dict[str, Any]:
    record = read_sealed(record_file)
    if file_digest(path) != record["file"]:
        raise DamagedFile(path)
    return record


def _solve_block(
    walk: BlockWalk,
    block: int,
    levels: Sequence[float],
    parameters: ObsParameters,
    importance: Mapping[str, torch.Tensor] | None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    records: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    form: storage.Storage = "compact" if parameters.stores_compact(len(levels)) else "dense"
    for group in walk.hessians(block, getattr(torch, parameters.precision), keep_outputs=True):
        solutions, factor = solve_group(group, levels, parameters, importance)
        for matrix, per_level in zip(group.matrices, solutions, strict=True):
            dense = matrix.weight
            errors = relative_errors(per_level, dense, group.hessian)
            records[matrix.name] = {
                "block": block,
                "size": matrix.size,
                "norm": float(dense.double().norm()),
                "damping": factor.damping,
                "already_zero": int(((dense == 0) | factor.dead).sum()),
                "tokens": group.tokens,
                **group.few_tokens,
                "levels": {
                    level_key(level): {
                        "zeros": int((solution == 0).sum()),
                        "relative_error": error,
                        "norm": float(solution.double().norm()),
                    }
                    for level, solution, error in zip(levels, per_level, errors, strict=True)
                },
            }
            for level, solution in zip(levels, per_level, strict=True):
                key = f"{matrix.name}@{level_key(level)}"
                tensors.update(storage.stored(key, solution, form))
    return records, tensors
