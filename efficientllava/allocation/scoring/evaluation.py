"""Scoring candidates: stitch from the database what changed, one forward pass, the risk."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import nn

from efficientllava.calibration.proxy_loss import ProxyLoss
from efficientllava.database.solutions import Database
from efficientllava.models.families import Adapter, Matrix
from efficientllava.offload.blocks_on_disk import BlocksOnDisk


class StitchedModel:
    """A language model whose prunable matrices are swapped in from the database.

    Args:
        language_model: changed in place.
        modules: those that hold its prunable matrices, in the adapter's order.
        matrices: the adapter's.
    """

    def __init__(
        self,
        language_model: nn.Module,
        modules: Sequence[nn.Module],
        matrices: Sequence[Matrix],
        database: Database,
    ) -> None:
        self.language_model, self.database = language_model, database
        self._modules, self._matrices = modules, matrices
        self.sizes = [matrix.size for matrix in matrices]
        self._current: list[float | None] = [None] * len(matrices)

    @torch.no_grad()
    def stitch(self, policy: Sequence[float]) -> None:
        """Put the solutions of a policy in place; only matrices whose level changed are copied."""
        for index, level in enumerate(policy):
            if self._current[index] != level:
                matrix = self._matrices[index]
                self.database.put(matrix.name, level, matrix.weight_in(self._modules[index]))
                self._current[index] = level


class StreamedModel(StitchedModel):
    """A language model whose blocks are stitched from the database when they come to the device.

    Args:
        blocks: brings them there; their `overlay` is this model from the first `stitch` on.

    Raises:
        ValueError: a prunable matrix does not lie in the checkpoint as it is in memory, so that
            it is not brought.
    """

    def __init__(self, adapter: Adapter, database: Database, blocks: BlocksOnDisk) -> None:
        modules = [matrix.module for matrix in adapter.matrices]
        super().__init__(adapter.language_model, modules, adapter.matrices, database)
        parameters = {matrix.parameter for matrix in adapter.matrices}
        if blocks.stream is None or blocks.prunable != parameters:
            raise ValueError("not every prunable matrix is streamed")
        self._blocks = blocks
        self._levels: dict[str, float] = {}
        self._of_block: dict[int, list[Matrix]] = {}
        for matrix in adapter.matrices:
            self._of_block.setdefault(matrix.block, []).append(matrix)

    def stitch(self, policy: Sequence[float]) -> None:
        """From now on blocks come with the solutions of a policy."""
        names = (matrix.name for matrix in self._matrices)
        self._levels = dict(zip(names, policy, strict=True))
        self._blocks.overlay = self

    def key(self, block: int) -> Hashable:
        """The levels of a block's matrices."""
        return tuple(self._levels[matrix.name] for matrix in self._of_block[block])

    @torch.no_grad()
    def put(self, block: int, slots: Mapping[str, torch.Tensor]) -> None:
        """Copy a block's solutions into their slots on the device."""
        for matrix in self._of_block[block]:
            slot = matrix.of(slots[matrix.parameter])
            self.database.put(matrix.name, self._levels[matrix.name], slot)


def swap_order(policies: Sequence[Sequence[float]], sizes: Sequence[int]) -> list[int]:
    """An order of policies in which little is copied: always the nearest of those left is next.

    Each policy is stitched whole, so the order changes no loss.

    Args:
        policies: ratios of every matrix.
        sizes: weights of every matrix.
    """
    if not policies:
        return []
    levels, weights = torch.tensor(policies), torch.tensor(sizes, dtype=torch.float64)
    order, left = [0], set(range(1, len(policies)))
    while left:
        copied = ((levels != levels[order[-1]]) * weights).sum(dim=1).tolist()
        order.append(min(left, key=lambda index: (copied[index], index)))
        left.remove(order[-1])
    return order


def stitched_models(
    adapter: Adapter, database: Database, count: int, blocks: BlocksOnDisk | None = None
) -> list[StitchedModel]:
    """The adapter's own language model and `count` - 1 copies of it, ready to be stitched.

    Args:
        blocks: brings the model's blocks to a device; then there is one model.
    """
    if blocks is not None:
        return [StreamedModel(adapter, database, blocks)]
    paths = {module: path for path, module in adapter.language_model.named_modules()}
    originals = [matrix.module for matrix in adapter.matrices]
    models = [StitchedModel(adapter.language_model, originals, adapter.matrices, database)]
    for _ in range(count - 1):
        duplicate = copy.deepcopy(adapter.language_model)
        modules = [duplicate.get_submodule(paths[module]) for module in originals]
        models.append(StitchedModel(duplicate, modules, adapter.matrices, database))
    return models


class Evaluator(Protocol):
    """Scores the candidates of a search."""

    def losses(
        self, policies: Sequence[Sequence[float]], share: float = 1.0
    ) -> Iterator[tuple[int, float]]:
        """(index, proxy loss) of every policy, as they finish.

        Args:
            share: of the proxy's batches, the first ones.
        """

    def projector_moved(self, state: Mapping[str, torch.Tensor]) -> None:
        """From now on candidates are scored with this projector."""

    def close(self) -> None:
        """Stop the workers."""


class CandidateEvaluator:
    """Losses of policies, several side by side; which worker scores what changes nothing.

    Args:
        models: one stitched model per worker.
        threads: torch threads of one evaluation.
    """

    def __init__(self, models: list[StitchedModel], loss: ProxyLoss, threads: int) -> None:
        self.loss, self._sizes = loss, models[0].sizes
        self._free: SimpleQueue[StitchedModel] = SimpleQueue()
        for model in models:
            self._free.put(model)
        self._pool = ThreadPoolExecutor(len(models), initializer=lambda: _use_threads(threads))

    def _evaluate(self, policy: Sequence[float], share: float) -> float:
        model = self._free.get()
        try:
            model.stitch(policy)
            return self.loss(model.language_model, share)
        finally:
            self._free.put(model)

    def losses(
        self, policies: Sequence[Sequence[float]], share: float = 1.0
    ) -> Iterator[tuple[int, float]]:
        """(index, proxy loss) of every policy, as they finish."""
        futures = {
            self._pool.submit(self._evaluate, policies[index], share): index
            for index in swap_order(policies, self._sizes)
        }
        for future in as_completed(futures):
            yield futures[future], future.result()

    def projector_moved(self, state: Mapping[str, torch.Tensor]) -> None:
        """From now on candidates are scored with this projector, which the adapter holds."""
        self.loss.projector_moved()

    def close(self) -> None:
        """Stop the workers."""
        self._pool.shutdown(cancel_futures=True)


def _use_threads(threads: int) -> None:
    torch.set_num_threads(threads)
