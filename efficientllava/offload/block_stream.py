"""Decoder blocks that pass through a device: two have a slot there, the next one is on its way.

On CUDA the next block is copied on a stream of its own while the current one computes: from
pinned memory, through which the host leads what it reads from files. On the CPU the same steps
follow each other. A block stays until its slot is needed, so that running one block over many
batches copies it once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

ALIGNMENT = 256
"""Bytes: where a weight may begin, as CUDA's own allocations do."""

Copy = Callable[[torch.Tensor, torch.Tensor], None]
"""Copies a weight of the host into its slot on the device, if possible without waiting."""


class Source(Protocol):
    """Where blocks come from and go to."""

    def key(self, block: int) -> Hashable:
        """The key of a block's current weights: equal keys, equal weights."""

    def fill(self, block: int, slots: Mapping[str, torch.Tensor], copy: Copy) -> None:
        """Write a block's weights into their slots on the device, by parameter name."""

    def onloaded(self, block: int, slots: Mapping[str, torch.Tensor]) -> None:
        """The block's parameters lie in their slots on the device from now on."""

    def offload(self, block: int) -> None:
        """Move the block's parameters off the device; keep what changed."""


@dataclass
class _Slot:
    """Room for one block.

    Attributes:
        block: which one is there or on its way; None when free.
        shown: whether the block's parameters are here already.
        key, origin: what it was filled from.
        filled: CUDA event after the copies, until the computing stream has waited for it.
    """

    memory: torch.Tensor
    block: int | None = None
    shown: bool = False
    key: Hashable = None
    origin: tuple[int, ...] = ()
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    filled: Any = None


class BlockStream:
    """Brings decoder blocks to a device before they run.

    Args:
        names: of each block, the parameters that are brought.
        device: where blocks run.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        names: Sequence[Sequence[str]],
        device: torch.device,
        source: Source,
    ) -> None:
        self._blocks, self._source, self._device = blocks, source, device
        self._parameters = [
            {name: dict(block.named_parameters())[name] for name in brought}
            for block, brought in zip(blocks, names, strict=True)
        ]
        most = max(sum(map(_room, named.values())) for named in self._parameters)
        self._slots = [_Slot(torch.empty(most, dtype=torch.uint8, device=device)) for _ in range(2)]
        self._entered, self._direction = -1, 1
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._before: Any = None
        self._pinned = _Pinned(most) if self._copies is not None else None

    def enter(self, block: int) -> None:
        """Have a block's weights on the device before anything that is queued from now on."""
        slot = self._slot_of(block)
        if slot is None or not self._valid(slot):
            slot = slot or self._other_than(self._entered)
            self._fill(slot, block, self._now())
        if slot.filled is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.filled)
            slot.filled = None
        if not slot.shown:
            for name, parameter in self._parameters[block].items():
                parameter.data = slot.weights[name]
            self._source.onloaded(block, slot.weights)
            slot.shown = True
        # whatever uses the other slot was queued before this
        self._before = self._now()
        if abs(block - self._entered) == 1:
            self._direction = block - self._entered
        self._entered = block

    def prefetch_after(self, block: int) -> None:
        """A block's work is queued: start to copy the one that runs next."""
        following = (block + self._direction) % len(self._blocks)
        slot = self._slot_of(following)
        if following != block and (slot is None or not self._valid(slot)):
            self._fill(slot or self._other_than(block), following, self._before)

    def release(self, block: int | None = None) -> None:
        """Take a block (all of them when None) off the device."""
        for slot in self._slots:
            if slot.block is not None and block in (None, slot.block):
                if slot.filled is not None:
                    # it may be on its way yet: nothing else may be given this memory before
                    torch.cuda.current_stream(self._device).wait_event(slot.filled)
                    slot.filled.synchronize()
                self._clear(slot)

    def _slot_of(self, block: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.block == block), None)

    def _other_than(self, block: int) -> _Slot:
        free = [slot for slot in self._slots if slot.block is None]
        return (free or [slot for slot in self._slots if slot.block != block])[0]

    def _valid(self, slot: _Slot) -> bool:
        """Whether what lies in a slot is what the block's weights are now."""
        assert slot.block is not None
        if slot.key != self._source.key(slot.block):
            return False
        return slot.shown or slot.origin == self._origin(slot.block)

    def _origin(self, block: int) -> tuple[int, ...]:
        return tuple(parameter.data_ptr() for parameter in self._parameters[block].values())

    def _fill(self, slot: _Slot, block: int, after: Any) -> None:
        if slot.block is not None:
            self._clear(slot)
        slot.weights = _carved(slot.memory, self._parameters[block])
        with self._copying(after):
            copy: Copy = _copy if self._pinned is None else self._pinned.begin()
            self._source.fill(block, slot.weights, copy)
        if self._copies is not None:
            slot.filled = self._copies.record_event()
            assert self._pinned is not None
            self._pinned.end(slot.filled)
        slot.block, slot.shown = block, False
        slot.key, slot.origin = self._source.key(block), self._origin(block)

    def _clear(self, slot: _Slot) -> None:
        assert slot.block is not None
        if slot.shown:
            self._source.offload(slot.block)
        # the memory may be written again once what reads it now is done: see `after` of _fill
        slot.block, slot.shown, slot.filled, slot.weights = None, False, None, {}

    def _now(self) -> Any:
        """The computing stream as it is queued now."""
        return (
            None if self._copies is None else torch.cuda.current_stream(self._device).record_event()
        )

    @contextmanager
    def _copying(self, after: Any) -> Iterator[None]:
        if self._copies is None:
            yield
            return
        self._copies.wait_event(after)
        with torch.cuda.stream(self._copies):
            yield


class _Pinned:
    """Page-locked memory of one block, through which weights go to the device without waiting."""

    def __init__(self, size: int) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._used, self._last = 0, None

    def begin(self) -> Copy:
        """Start over, once the last block has left the memory."""
        if self._last is not None:
            self._last.synchronize()
        self._used = 0
        return self._copy

    def end(self, copied: Any) -> None:
        """The event after which the memory may be used again."""
        self._last = copied

    def _copy(self, slot: torch.Tensor, weight: torch.Tensor) -> None:
        staged = _view(self._memory, self._used, weight)
        self._used += _room(weight)
        staged.copy_(weight)
        slot.copy_(staged, non_blocking=True)


def _copy(slot: torch.Tensor, weight: torch.Tensor) -> None:
    slot.copy_(weight)


def _room(weight: torch.Tensor) -> int:
    """Bytes a weight takes, with what it leaves unused."""
    return -(-weight.numel() * weight.element_size() // ALIGNMENT) * ALIGNMENT


def _view(memory: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    size = like.numel() * like.element_size()
    return memory[start : start + size].view(like.dtype).view(like.shape)


def _carved(memory: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    slots, start = {}, 0
    for name, weight in weights.items():
        slots[name] = _view(memory, start, weight)
        start += _room(weight)
    return slots


@contextmanager
def streaming(blocks: Sequence[nn.Module], stream: BlockStream) -> Iterator[None]:
    """Let blocks run on a stream's device; what is queued of gradients is computed again there.

    `forward` is wrapped and no hook is set: checkpointing calls it again for the backward pass (for
    which a cache of keys and values would grow twice: pass use_cache=False),
    when the block has left the device meanwhile.
    """
    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            run = partial(_run, stream, number, block.forward)
            stack.enter_context(replaced_forward(block, run))
        stack.callback(stream.release)
        yield


@contextmanager
def replaced_forward(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run something else instead of its forward."""
    own = block.__dict__.get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward  # its class has one
        else:
            block.forward = own


def _run(
    stream: BlockStream, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        stream.enter(number)
        output = forward(*args, **kwargs)
        stream.prefetch_after(number)
        return output

    given = (*args, *kwargs.values())
    if torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in given
    ):
        # autograd would keep weights whose slot is another block's by then
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    return run(*args, **kwargs)
