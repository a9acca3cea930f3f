"""Removing whole decoder blocks: the order in which they go, and the removal itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from efficientllava.calibration.block_walk import (
    BlockWalk,
    LanguageInputs,
    calibration_inputs,
    language_inputs,
    pair_batches,
)
from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError
from efficientllava.kernels.masks import zeros_at
from efficientllava.models.families import Adapter, family_of
from efficientllava.progress import Event, Progress, silent
from efficientllava.pruning.structured.token_importance import cosine_sum, important_tokens


def removable_blocks(total: int, keep_last: bool) -> list[int]:
    """Blocks that may go: never the first, the last only if allowed."""
    return list(range(1, total - 1 if keep_last else total))


def removed_count(ratio: float, total: int, keep_last: bool) -> int:
    """round(ratio * blocks), the number of blocks that go.

    Raises:
        UserError: more than may go.
    """
    count, most = zeros_at(ratio, total), len(removable_blocks(total, keep_last))
    if count > most:
        kept = "the first and the last" if keep_last else "the first"
        raise UserError(
            f"ratio {ratio:g} removes {count} of {total} decoder blocks; at most {most} can go, "
            f"since {kept} always stay",
            where="params.yaml, ratios",
            remedy=f"methods that remove blocks reach {most / total:g} here"
            if most
            else "take a method that removes no blocks"
            + ", or set finalize.keep_last_block: false" * (keep_last and total > count),
        )
    return count


def runs_of(removed: Sequence[int]) -> list[tuple[int, int]]:
    """Removed blocks as half-open runs [a, b), ascending."""
    runs: list[tuple[int, int]] = []
    for block in sorted(removed):
        if runs and runs[-1][1] == block:
            runs[-1] = (runs[-1][0], block + 1)
        else:
            runs.append((block, block + 1))
    return runs


class BlockList:
    """The decoder blocks of a model, any of which can be taken out and put back.

    A selection renumbers the blocks' cache slots and sets the configuration: without that,
    cached decoding goes silently wrong and a saved checkpoint loads at full depth.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        path = family_of(adapter.model.config).blocks  # type: ignore[union-attr]
        parent, _, self._name = path.rpartition(".")
        self._parent = adapter.language_model.get_submodule(parent)
        configs = (adapter.language_model.config, adapter.model.config.get_text_config())  # type: ignore[operator,union-attr]
        self._configs: list[Any] = list({id(config): config for config in configs}.values())
        types = getattr(self._configs[0], "layer_types", None)
        self._layer_types = None if types is None else list(types)

    def keep(self, kept: Sequence[int]) -> None:
        """Make the model consist of these of its original blocks, in ascending order."""
        blocks = [self.adapter.blocks[index] for index in kept]
        setattr(self._parent, self._name, nn.ModuleList(blocks))
        for index, block in enumerate(blocks):
            for module in block.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    setattr(module, "layer_idx", index)  # noqa: B010  modules are untyped
        for config in self._configs:
            config.num_hidden_layers = len(blocks)
            if self._layer_types is not None:
                config.layer_types = [self._layer_types[index] for index in kept]


@contextmanager
def visible_attention(adapter: Adapter) -> Iterator[None]:
    """Attention that gives its weights away, in the language model only."""
    model: Any = adapter.language_model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def image_text_inputs(adapter: Adapter, proxy: ProxyData, calibration: str) -> list[LanguageInputs]:
    """The image-text pairs, as Short-LVLM calibrates; text where pairs are not to be used."""
    if calibration == "text_and_pairs" and proxy.pairs is not None:
        return [language_inputs(adapter, batch) for batch, _ in pair_batches(proxy.pairs)]
    return calibration_inputs(adapter, proxy, "text")


@torch.no_grad()
def mean_cosines(
    adapter: Adapter,
    proxy: ProxyData,
    calibration: str,
    important: float | None,
    progress: Progress = silent,
) -> list[float]:
    """c_l = mean of cos(x_l, x_{l+1}) per block, x_l its input: the higher, the less it does.

    Args:
        important: only over this share of the most important tokens per modality, found by each
            block's own attention on image-text pairs (Short-LVLM); None: over all tokens of the
            calibration data, which is 1 - block influence (ShortGPT, Men et al. 2024).
    """
    with ExitStack() as stack:
        if important is None:
            walk = BlockWalk(adapter, calibration_inputs(adapter, proxy, calibration))
        else:
            stack.enter_context(visible_attention(adapter))
            walk = BlockWalk(adapter, image_text_inputs(adapter, proxy, calibration))
        result, total = [], len(adapter.blocks)
        for block, module in enumerate(adapter.blocks):
            summed, count = 0.0, 0
            weights: list[torch.Tensor] = []
            handle = module.get_submodule("self_attn").register_forward_hook(
                lambda _module, _args, output, into=weights: into.append(output[1])
            )
            try:
                for index, output in walk.outputs(block):
                    batch = walk.inputs[index]
                    chosen = batch.tokens
                    if important is not None:
                        attention = weights[0].mean(dim=1, dtype=torch.float32)
                        chosen = important_tokens(attention, batch.text, batch.visual, important)
                    weights.clear()
                    value, number = cosine_sum(walk.hidden[index], output, chosen)
                    summed, count = summed + value, count + number
                    walk.enter(block + 1, index, output)
            finally:
                handle.remove()
            result.append(summed / max(count, 1))
            progress(Event("block", block + 1, total))
    return result


def order_by_cosine(cosines: Sequence[float], removable: Sequence[int]) -> list[int]:
    """Removable blocks, highest cosine first: a static ranking, so that removed sets are nested."""
    return sorted(removable, key=lambda block: (-cosines[block], block))


def order_by_loss(
    blocks: BlockList,
    removable: Sequence[int],
    count: int,
    loss: Callable[[nn.Module], float],
    progress: Progress = silent,
) -> tuple[list[int], list[float]]:
    """Greedy removal (SLEB, Song et al. 2024): each time the block whose loss is then lowest.

    Args:
        loss: of a language model, on the proxy data.

    Returns:
        `count` blocks in the order of removal, and the loss after each; the model is whole again.
    """
    total = len(blocks.adapter.blocks)
    removed: list[int] = []
    losses: list[float] = []
    for step in range(count):
        trials = {}
        for block in removable:
            if block not in removed:
                kept = [index for index in range(total) if index not in (*removed, block)]
                blocks.keep(kept)
                trials[block] = loss(blocks.adapter.language_model)
        best = min(trials, key=lambda block: (trials[block], block))
        removed.append(best)
        losses.append(trials[best])
        progress(Event("block", step + 1, count, {"proxy_loss": trials[best]}))
    blocks.keep(range(total))
    return removed, losses
