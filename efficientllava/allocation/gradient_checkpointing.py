"""Gradient checkpointing of decoder blocks: of a forward pass only their inputs are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While this lasts, each block's activations are computed again when its gradient is.

    A block is called as ever, with whatever keyword arguments its family has. Its hooks run inside:
    one before it runs also when it is computed again, and so may bring the block's weights; one
    after it does not, for torch ends the repetition at the last tensor that is needed (the block's
    last product is not repeated). The numbers are the same bit for bit, since the same kernels run
    on the same inputs. Blocks must draw no random numbers (dropout is off in `eval` mode).

    `PreTrainedModel.gradient_checkpointing_enable` would need `train` mode, dropout with it.

    Args:
        blocks: their classes are exchanged, and put back at the end, after an exception too.
    """
    classes = [type(block) for block in blocks]
    try:
        for block, kind in zip(blocks, classes, strict=True):
            block.__class__ = type(kind.__name__, (_Checkpointed, kind), {})
        yield
    finally:
        for block, kind in zip(blocks, classes, strict=True):
            block.__class__ = kind


class _Checkpointed(nn.Module):
    """Put before a block's class: the call, and not only `forward`, is what is repeated."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # no random numbers, so none of their state to keep
        return checkpoint(
            super().__call__, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )
