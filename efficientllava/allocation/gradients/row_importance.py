"""How much every row of a matrix counts in OBS: the Fisher information of its output.

OBS makes the output error of a layer small and counts its outputs alike. Their gradients say how
much each matters to the loss: K-FAC's Fisher information of a layer is G (x) H with G = E[g g^T]
(Martens & Grosse 2015), and r, the diagonal of G, is one number for a row.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from efficientllava.allocation.gradients.backward import label_draws, row_squares
from efficientllava.calibration.proxy_loss import pair_loss_batches, text_loss_batches
from efficientllava.calibration.sample_losses import batch_weights, warn_of_few
from efficientllava.data.proxy import ProxyData
from efficientllava.files import (
    DamagedFile,
    file_digest,
    load_tensors,
    read_sealed,
    save_tensors,
    write_sealed,
)
from efficientllava.models.families import Adapter
from efficientllava.progress import Event, Progress, silent

TENSORS, RECORD = "rows.safetensors", "rows.json"


def measure_rows(
    adapter: Adapter,
    samples: ProxyData,
    seed: int,
    folder: Path,
    streamed: bool = False,
    progress: Progress = silent,
) -> None:
    """Write r = mean of g_tr^2 of every matrix's rows: g of labels drawn from the model.

    Positions of answers count by `answer_weight`. Batch by batch: those found in the folder are not
    computed again.

    Args:
        adapter: of the dense model.
        samples: text scored at every next token, pairs at their answers.
        streamed: whether its blocks are streamed.

    Raises:
        UserError: a gradient is NaN or inf, naming the matrix.
    """
    texts = text_loss_batches(adapter, samples.segments)
    batches = texts + pair_loss_batches(adapter, samples)
    positions = [int(batch.positions.sum()) for batch in batches]
    warn_of_few(sum(positions), "the importance of rows rests")
    weights = batch_weights(positions, len(texts))
    counted = sum(weight * count for weight, count in zip(weights, positions, strict=True))
    importance: dict[str, torch.Tensor] = {}
    for index, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
        path = folder / "batches" / f"{index:03d}.safetensors"
        if not path.exists():
            uniforms = label_draws(batch, f"{seed}/rows/{index}")
            save_tensors(path, row_squares(adapter, batch, uniforms, streamed))
        for name, squares in load_tensors(path).items():
            importance[name] = importance.get(name, 0.0) + squares * (weight / counted)
        progress(Event("importance of rows", index + 1, len(batches)))
    save_tensors(folder / TENSORS, importance)
    write_sealed(folder / RECORD, {"file": file_digest(folder / TENSORS)})
    shutil.rmtree(folder / "batches")


def measured_rows(folder: Path) -> Mapping[str, torch.Tensor] | None:
    """What `measure_rows` has finished, [out] float64 by name; None where it has not.

    Raises:
        UserError: it is not as it was written.
    """
    if not (folder / RECORD).exists():
        return None
    if read_sealed(folder / RECORD)["file"] != file_digest(folder / TENSORS):
        raise DamagedFile(folder / TENSORS)
    return load_tensors(folder / TENSORS)
