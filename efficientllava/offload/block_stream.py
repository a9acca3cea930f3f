"""Decoder blocks that pass through a device: two have a place there, the next one is on its way.

On CUDA the next block is copied on a stream of its own while the current one computes: from
pinned memory, through which the host leads what it reads from files. On the CPU the same steps
follow each other. A block stays until its place is needed, so that running one block over many
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
"""Copies a weight of the host into its place on the device, if possible without waiting."""


class Source(Protocol):
    """Where blocks come from and go to."""

    def key(self, block: int) -> Hashable:
        """What decides a block's weights now: equal keys, equal weights."""

    def fill(self, block: int, places: Mapping[str, torch.Tensor], copy: Copy) -> None:
        """Write a block's weights into their places on the device, by parameter name."""

    def came(self, block: int, places: Mapping[str, torch.Tensor]) -> None:
        """The block's parameters are their places on the device from now on."""

    def leave(self, block: int) -> None:
        """Give the block's parameters their place away from the device; keep what changed."""


@dataclass
class _Place:
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
            {name: dict(block.named_parameters())[name] for name in wanted}
            for block, wanted in zip(blocks, names, strict=True)
        ]
        most = max(sum(map(_room, each.values())) for each in self._parameters)
        self._places = [
            _Place(torch.empty(most, dtype=torch.uint8, device=device)) for _ in range(2)
        ]
        self._entered, self._direction = -1, 1
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._before: Any = None
        self._pinned = _Pinned(most) if self._copies is not None else None

    def enter(self, block: int) -> None:
        """Have a block's weights on the device before anything that is queued from now on."""
        place = self._place_of(block)
        if place is None or not self._valid(place):
            place = place or self._other_than(self._entered)
            self._fill(place, block, self._now())
        if place.filled is not None:
            torch.cuda.current_stream(self._device).wait_event(place.filled)
            place.filled = None
        if not place.shown:
            for name, parameter in self._parameters[block].items():
                parameter.data = place.weights[name]
            self._source.came(block, place.weights)
            place.shown = True
        # whatever uses the other place was queued before this
        self._before = self._now()
        if abs(block - self._entered) == 1:
            self._direction = block - self._entered
        self._entered = block

    def after(self, block: int) -> None:
        """A block's work is queued: send for the one that will be wanted next."""
        following = (block + self._direction) % len(self._blocks)
        place = self._place_of(following)
        if following != block and (place is None or not self._valid(place)):
            self._fill(place or self._other_than(block), following, self._before)

    def drop(self, block: int | None = None) -> None:
        """Take a block (all of them when None) off the device."""
        for place in self._places:
            if place.block is not None and block in (None, place.block):
                if place.filled is not None:
                    # it may be on its way yet: nothing else may be given this memory before
                    torch.cuda.current_stream(self._device).wait_event(place.filled)
                    place.filled.synchronize()
                self._clear(place)

    def _place_of(self, block: int) -> _Place | None:
        return next((place for place in self._places if place.block == block), None)

    def _other_than(self, block: int) -> _Place:
        free = [place for place in self._places if place.block is None]
        return (free or [place for place in self._places if place.block != block])[0]

    def _valid(self, place: _Place) -> bool:
        """Whether what lies in a place is what the block's weights are now."""
        assert place.block is not None
        if place.key != self._source.key(place.block):
            return False
        return place.shown or place.origin == self._origin(place.block)

    def _origin(self, block: int) -> tuple[int, ...]:
        return tuple(parameter.data_ptr() for parameter in self._parameters[block].values())

    def _fill(self, place: _Place, block: int, after: Any) -> None:
        if place.block is not None:
            self._clear(place)
        place.weights = _carved(place.memory, self._parameters[block])
        with self._copying(after):
            copy: Copy = _copy if self._pinned is None else self._pinned.begin()
            self._source.fill(block, place.weights, copy)
        if self._copies is not None:
            place.filled = self._copies.record_event()
            assert self._pinned is not None
            self._pinned.end(place.filled)
        place.block, place.shown = block, False
        place.key, place.origin = self._source.key(block), self._origin(block)

    def _clear(self, place: _Place) -> None:
        assert place.block is not None
        if place.shown:
            self._source.leave(place.block)
        # the memory may be written again once what reads it now is done: see `after` of _fill
        place.block, place.shown, place.filled, place.weights = None, False, None, {}

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

    def _copy(self, place: torch.Tensor, weight: torch.Tensor) -> None:
        staged = _view(self._memory, self._used, weight)
        self._used += _room(weight)
        staged.copy_(weight)
        place.copy_(staged, non_blocking=True)


def _copy(place: torch.Tensor, weight: torch.Tensor) -> None:
    place.copy_(weight)


def _room(weight: torch.Tensor) -> int:
    """Bytes a weight takes, with what it leaves unused."""
    return -(-weight.numel() * weight.element_size() // ALIGNMENT) * ALIGNMENT


def _view(memory: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    size = like.numel() * like.element_size()
    return memory[start : start + size].view(like.dtype).view(like.shape)


def _carved(memory: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    places, start = {}, 0
    for name, weight in weights.items():
        places[name] = _view(memory, start, weight)
        start += _room(weight)
    return places


@contextmanager
def streaming(blocks: Sequence[nn.Module], stream: BlockStream) -> Iterator[None]:
    """Let blocks run on a stream's device; what is queued of gradients is computed again there.

    `forward` is wrapped and no hook is set: checkpointing calls it again for the backward pass (for
    which a cache of keys and values would grow twice: pass use_cache=False),
    when the block has left the device meanwhile.
    """
    with ExitStack() as ends:
        for number, block in enumerate(blocks):
            run = partial(_run, stream, number, block.forward)
            ends.enter_context(replaced_forward(block, run))
        ends.callback(stream.drop)
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
        stream.after(number)
        return output

    given = (*args, *kwargs.values())
    if torch.is_grad_enabled() and any(
        isinstance(each, torch.Tensor) and each.requires_grad for each in given
    ):
        # autograd would keep weights whose place is another block's by then
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    return run(*args, **kwargs)
