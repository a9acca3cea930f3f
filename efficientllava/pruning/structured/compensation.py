"""Compensation for removed blocks, folded into the `down_proj` of the block before them.

For a removed run [a, b): D = x_b - x_a is its sum in the residual stream, H the input of
`down_proj` of block a - 1, W its weight [d, m], Y = H W^T. Only such an update folds exactly: a map
of the whole residual stream does not, the skip path bypasses every weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efficientllava.calibration.block_walk import LanguageInputs
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter, Matrix
from efficientllava.pruning.structured.token_importance import first_tokens

PENALTIES = tuple(10.0**power for power in range(-6, 3))
"""Penalties of replaceme that are tried, in units of the mean diagonal of its Gram."""
HELD_OUT = 5
"""Every fifth sample is held out when a penalty is chosen."""


@dataclass
class Grams:
    """Sums over tokens for one run, in float64; nothing else of the activations is kept.

    Attributes:
        inputs: H^T H [m, m].
        cross: H^T D [m, d].
        energy: sum of D^2.
    """

    inputs: torch.Tensor
    cross: torch.Tensor
    energy: float = 0.0

    @classmethod
    def empty(cls, matrix: Matrix) -> Grams:
        """Before the first token, for a `down_proj`."""
        height, width = matrix.weight.shape
        none = torch.zeros(width, width, dtype=torch.float64, device=matrix.weight.device)
        return cls(none, none.new_zeros(width, height))

    def add(self, inputs: torch.Tensor, change: torch.Tensor) -> None:
        """Add tokens: H [n, m], D [n, d]."""
        rows, change = inputs.double(), change.double()
        self.inputs.addmm_(rows.T, rows)
        self.cross.addmm_(rows.T, change)
        self.energy += float(change.square().sum())

    def plus(self, other: Grams) -> Grams:
        """The sums over both."""
        return Grams(
            self.inputs + other.inputs, self.cross + other.cross, self.energy + other.energy
        )

    def error(self, update: torch.Tensor) -> float:
        """sum ||D - H dW^T||^2 for an update dW [d, m]; 0 energy gives 0."""
        fitted = ((update @ self.inputs) * update).sum() - 2 * (update.T * self.cross).sum()
        return float(fitted) + self.energy


def scp(weight: torch.Tensor, gram: torch.Tensor, components: int) -> torch.Tensor:
    """Subspace-compensated pruning: dW = V V^T W (Short-LVLM, after Nullu).

    V holds the `components` first right singular vectors of the feature differences, uncentred:
    the leading eigenvectors of their Gram.

    Args:
        weight: W [d, m], float64.
        gram: sum over samples of the outer product of mean differences [d, d].
    """
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -components:]
    return vectors @ (vectors.T @ weight)


def replaceme(weight: torch.Tensor, grams: Grams, penalty: float) -> torch.Tensor:
    """dW = T^T W - W with T = (Y^T Y + a I)^-1 Y^T (Y + D), Y = H W^T (ReplaceMe).

    Args:
        weight: W [d, m], float64.
        penalty: a in units of the mean diagonal of Y^T Y.
    """
    outputs = weight @ grams.inputs @ weight.T
    damped = outputs.clone()
    damped.diagonal().add_(penalty * outputs.diagonal().mean().clamp(min=1e-300))
    return torch.linalg.solve(damped, outputs + weight @ grams.cross).T @ weight - weight


def choose_penalty(weight: torch.Tensor, fitted: Grams, held_out: Grams) -> float | None:
    """The penalty of least error on held-out tokens; None if plain removal is no worse there.

    Args:
        weight: W [d, m], float64.
        fitted, held_out: sums over different samples.
    """
    best, chosen = held_out.energy, None
    for penalty in reversed(PENALTIES):
        error = held_out.error(replaceme(weight, fitted, penalty))
        if error < best:
            best, chosen = error, penalty
    return chosen


@dataclass
class _Run:
    """The sums of one removed run [start, end)."""

    start: int
    end: int
    matrix: Matrix
    fitted: Grams
    held_out: Grams
    means: torch.Tensor


@torch.no_grad()
def compensate(
    adapter: Adapter,
    batches: Sequence[LanguageInputs],
    runs: Sequence[tuple[int, int]],
    kind: str,
    components: int,
) -> list[dict[str, Any]]:
    """Fold runs of blocks into the blocks before them, in place; the blocks stay for now.

    Sums are taken on the dense model, over all tokens but padding and the first of each sample,
    whose activations are massive and would drown the rest.

    Args:
        batches: calibration data.
        runs: half-open [a, b), a >= 1.
        kind: "scp", "replaceme" or "none".
        components: singular vectors of `scp`.

    Returns:
        One record per run: run, folded_into, kind, penalty (None where none applies or plain
        removal was no worse on held-out tokens), held_out_error: sum ||D - H dW^T||^2 / sum ||D||^2
        on held-out samples, 1 for plain removal.

    Raises:
        UserError: fewer than two samples, so that none can be held out.
    """
    if kind == "none" or not runs:
        return [
            {"run": list(run), "folded_into": run[0] - 1, "kind": "none", "penalty": None}
            for run in runs
        ]
    gathered = _gather(adapter, batches, runs)
    records = []
    for run in gathered:
        weight = run.matrix.weight.double()
        penalty = None
        if kind == "scp":
            update = trial = scp(weight, run.means, components)
        else:
            penalty = choose_penalty(weight, run.fitted, run.held_out)
            update = trial = torch.zeros_like(weight)
            if penalty is not None:
                trial = replaceme(weight, run.fitted, penalty)
                update = replaceme(weight, run.fitted.plus(run.held_out), penalty)
        energy = run.held_out.energy
        records.append(
            {
                "run": [run.start, run.end],
                "folded_into": run.start - 1,
                "kind": kind,
                "penalty": penalty,
                "held_out_error": run.held_out.error(trial) / energy if energy > 0 else 0.0,
            }
        )
        # cast once; a block's sums were taken before any of these changes
        run.matrix.weight.copy_(weight + update)
    return records


def _gather(
    adapter: Adapter, batches: Sequence[LanguageInputs], runs: Sequence[tuple[int, int]]
) -> list[_Run]:
    gathered = []
    for start, end in runs:
        matrix = down_projection(adapter, start - 1)
        means = torch.zeros(
            matrix.weight.shape[0],
            matrix.weight.shape[0],
            dtype=torch.float64,
            device=matrix.weight.device,
        )
        sums = Grams.empty(matrix), Grams.empty(matrix)
        gathered.append(_Run(start, end, matrix, *sums, means))
    boundaries = {block for start, end in runs for block in (start - 1, end - 1)}
    samples = 0
    for batch in batches:
        inputs: dict[int, torch.Tensor] = {}
        streams: dict[int, torch.Tensor] = {}
        with ExitStack() as hooks:
            for block in sorted(boundaries):
                hooks.callback(
                    adapter.blocks[block].register_forward_hook(_keep_output(streams, block)).remove
                )
            for run in gathered:
                module = run.matrix.module
                hooks.callback(
                    module.register_forward_pre_hook(_keep_input(inputs, run.start)).remove
                )
            adapter.language_model(**{**batch.arguments, "use_cache": False})
        rows = batch.tokens & ~first_tokens(batch.tokens)
        numbers = torch.arange(samples, samples + rows.shape[0], device=rows.device)
        validation = (numbers % HELD_OUT == 1)[:, None]
        samples += rows.shape[0]
        for run in gathered:
            change = streams[run.end - 1] - streams[run.start - 1]
            for gram, part in ((run.fitted, rows & ~validation), (run.held_out, rows & validation)):
                gram.add(inputs[run.start][part], change[part])
            mask = rows[:, :, None].double()
            means = (change.double() * mask).sum(1) / mask.sum(1).clamp(min=1.0)
            run.means.addmm_(means.T, means)
    if samples < 2:
        raise UserError(
            "one calibration sample: none can be held out to choose the compensation by",
            where="proxy",
            remedy="raise proxy.pairs or proxy.segments, or set finalize.compensation: none",
        )
    return gathered


def _keep_output(into: dict[int, torch.Tensor], block: int) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        into[block] = output[0] if isinstance(output, tuple) else output

    return keep


def _keep_input(into: dict[int, torch.Tensor], start: int) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any) -> None:
        into[start] = args[0]

    return keep


def down_projection(adapter: Adapter, block: int) -> Matrix:
    """The last matrix of a block, whose output is added to the residual stream.

    Raises:
        UserError: the block does not end in one matrix, or a norm follows it (Gemma 2): then
            nothing folds into its weights exactly.
    """
    if hasattr(adapter.blocks[block], "post_feedforward_layernorm"):
        raise UserError(
            "has a norm after its down projection: no compensation folds into the weights",
            where=f"decoder block {block}",
            remedy="set finalize.compensation: none",
        )
    last = adapter.of_block(block)[-1]
    if len(last) != 1:
        raise UserError(
            f"ends in {len(last)} matrices, not in one down projection",
            where=f"decoder block {block}",
            remedy="set finalize.compensation: none",
        )
    return last[0]
