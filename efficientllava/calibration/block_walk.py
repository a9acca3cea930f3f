"""Walking a language model block by block on calibration data; one block is active at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from efficientllava.calibration.visual_tokens import drifting
from efficientllava.data.proxy import Pairs, ProxyData, batches
from efficientllava.errors import UserError
from efficientllava.kernels.hessian import accumulate, empty
from efficientllava.models.families import FOUND, Adapter, Matrix, text_inputs
from efficientllava.offload.block_stream import replaced_forward
from efficientllava.parameters import ObsParameters

FEW_TOKENS = 32
"""An expert that fewer calibration tokens reach is pruned by magnitude."""


class _Reached(Exception):
    """The language model's input has been seen: the rest of the forward pass is not needed."""


@dataclass
class LanguageInputs:
    """One batch as the language model takes it: images already merged into the embeddings.

    Attributes:
        arguments: keyword arguments of the language model's forward, `inputs_embeds` [B, T, d].
        tokens: [B, T] bool, positions that are not padding.
        visual: [B, T] bool, positions of image tokens.
    """

    arguments: dict[str, Any]
    tokens: torch.Tensor
    visual: torch.Tensor

    @property
    def text(self) -> torch.Tensor:
        """[B, T] bool, positions that are neither padding nor of an image."""
        return self.tokens & ~self.visual


@torch.no_grad()
def language_inputs(adapter: Adapter, batch: dict[str, torch.Tensor]) -> LanguageInputs:
    """Run a model up to its language model and keep what arrives there, on the model's device."""
    caught: dict[str, Any] = {}
    batch = {name: value.to(adapter.device) for name, value in batch.items()}
    if batch.keys() == {"input_ids"}:
        batch = text_inputs(adapter.model, batch["input_ids"])

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.update(kwargs)
        raise _Reached

    handle = adapter.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        adapter.model(**batch, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    if caught.get("inputs_embeds") is None:
        ids, language_model = batch["input_ids"], adapter.language_model
        caught["inputs_embeds"] = language_model.get_input_embeddings()(ids)  # type: ignore[operator]
        if getattr(language_model, "hidden_size_per_layer_input", None):  # Gemma 4
            caught["per_layer_inputs"] = language_model.get_per_layer_inputs(ids)  # type: ignore[operator]
        caught.pop("input_ids", None)
    tokens = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    image_token = getattr(adapter.model.config, "image_token_id", None)
    visual = tokens & (batch["input_ids"] == (-1 if image_token is None else image_token))
    return LanguageInputs(caught, tokens, visual)


def text_batches(segments: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of text segments [n, length] as model inputs."""
    for part in batches(segments.shape[0], segments.shape[1]):
        yield {"input_ids": segments[part]}


def pair_batches(pairs: Pairs) -> Iterator[tuple[dict[str, torch.Tensor], Pairs]]:
    """Batches of image-text pairs as model inputs, with the pairs they hold."""
    for part in batches(len(pairs), pairs.labels.shape[1]):
        chosen = pairs[part]
        yield chosen.inputs, chosen


def calibration_inputs(
    adapter: Adapter, proxy: ProxyData, calibration: str
) -> list[LanguageInputs]:
    """The calibration batches: text segments, and image-text pairs if asked for and at hand."""
    chosen = [language_inputs(adapter, batch) for batch in text_batches(proxy.segments)]
    if calibration == "text_and_pairs" and proxy.pairs is not None:
        chosen += [language_inputs(adapter, batch) for batch, _ in pair_batches(proxy.pairs)]
    return chosen


@dataclass
class GroupHessian:
    """The Hessian of one distinct input of a block, and the matrices that read it.

    Attributes:
        matrices: they share the input.
        hessian: [in, in] float32 (float64 on request).
        tokens: calibration tokens in it.
    """

    matrices: list[Matrix]
    hessian: torch.Tensor
    tokens: int = 0

    @property
    def few_tokens(self) -> dict[str, int]:
        """For records: the tokens that reached an expert, if these are too few for a Hessian.

        The Hessian is the identity then: OBS and Wanda prune by magnitude.
        """
        few = self.matrices[0].expert is not None and self.tokens < FEW_TOKENS
        return {"few_tokens": self.tokens} if few else {}

    @property
    def name(self) -> str:
        """The matrices' names, for messages."""
        first, *others = (matrix.name for matrix in self.matrices)
        return ", ".join([first, *(name.rsplit(".", 1)[1] for name in others)])


class BlockWalk:
    """Activations of the calibration data, moved forward through one decoder block at a time.

    Every block's arguments are recorded beforehand (masks and positions shared by reference), so
    that nothing is assumed about a block's signature; of the activations only those entering the
    current block are kept, and those leaving it where that saves a pass.

    Args:
        tokens: what Hessians see, as `obs.calibration_tokens`.
        drifting_share: of visual tokens, for "text_and_drifting_visual".
    """

    def __init__(
        self,
        adapter: Adapter,
        inputs: list[LanguageInputs],
        tokens: str = "all",
        drifting_share: float = 0.1,
    ) -> None:
        self.adapter = adapter
        self.inputs = inputs
        self._tokens, self._drifting_share = tokens, drifting_share
        self.hidden: list[torch.Tensor] = []
        self._leaving: dict[int, list[torch.Tensor]] = {}
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        self._added: list[list[torch.Tensor | None]] = []
        for batch in inputs:
            self._record(batch)
        if hasattr(adapter.model.config, FOUND):
            self._require_replay()

    @torch.no_grad()
    def _require_replay(self) -> None:
        """Check on the first batch that the blocks one by one give what the whole model gives.

        Raises:
            UserError: they do not: the model does more between its blocks than adding to them.
        """
        outputs: list[torch.Tensor] = []
        handle = self.adapter.blocks[-1].register_forward_hook(
            lambda module, args, output: outputs.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        try:
            self.adapter.language_model(**self.inputs[0].arguments)
        finally:
            handle.remove()
        before = list(self.hidden)
        for block in range(len(self.adapter.blocks)):
            self.advance(block)
        if not torch.equal(self.hidden[0], outputs[0]):
            raise UserError(
                "its decoder blocks, run one by one, do not give what the model gives",
                where="a family found by structure",
                remedy="this model needs a Family of its own (docs/models.md)",
            )
        self.hidden = before

    @torch.no_grad()
    def _record(self, batch: LanguageInputs) -> None:
        """Catch the arguments of every block, and what the model adds between blocks.

        Only the first block runs. Every block hands zeros on, so that the next one receives what
        is added in front of it (Qwen3-VL's deepstack features), to the bit.
        """
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        added: list[torch.Tensor | None] = []
        rest: list[tuple[Any, ...] | None] = []  # what a block returns beside the activations

        def catch(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            others = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            calls.append((args[1:], others))
            hidden = args[0] if args else kwargs["hidden_states"]
            if not rest:
                self.hidden.append(hidden)
                output = forward(*args, **kwargs)
                rest.append(output[1:] if isinstance(output, tuple) else None)
                added.append(None)
            else:
                added.append(hidden if hidden.any() else None)
            zeros = torch.zeros_like(hidden)
            return zeros if rest[0] is None else (zeros, *rest[0])

        with ExitStack() as replaced:
            for block in self.adapter.blocks:
                replaced.enter_context(replaced_forward(block, partial(catch, block.forward)))
            self.adapter.language_model(**batch.arguments)
        self._calls.append(calls)
        self._added.append(added)

    @torch.no_grad()
    def outputs(self, block: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(batch, [B, T, d]): a block's outputs for the activations that enter it now."""
        for index, hidden in enumerate(self.hidden):
            args, kwargs = self._calls[index][block]
            output = self.adapter.blocks[block](hidden, *args, **kwargs)
            yield index, output[0] if isinstance(output, tuple) else output

    def selection(self, block: int) -> list[torch.Tensor]:
        """[B, T] bool per batch: the tokens that Hessians of a block see."""
        if self._tokens == "all":
            return [batch.tokens for batch in self.inputs]
        selected = [batch.text for batch in self.inputs]
        if self._tokens == "text_and_drifting_visual" and any(b.visual.any() for b in self.inputs):
            for index, output in self.outputs(block):
                selected[index] = selected[index] | drifting(
                    self.hidden[index], output, self.inputs[index].visual, self._drifting_share
                )
        return selected

    def hessians(
        self, block: int, dtype: torch.dtype = torch.float32, keep_outputs: bool = False
    ) -> list[GroupHessian]:
        """One Hessian per distinct input of a block, at the activations that enter it now.

        Args:
            keep_outputs: keep what leaves the block for `advance`, which then needs no pass of its
                own: where the block's weights do not change in between.
        """
        selected = self.selection(block)
        groups = [
            GroupHessian(matrices, empty(matrices[0].weight.shape[1], dtype, self.adapter.device))
            for matrices in self.adapter.of_block(block)
        ]
        with ExitStack() as hooks:
            current: list[int] = [0]
            for group in groups:
                hooks.enter_context(_accumulating(group, selected, current))
            leaving = []
            for index, output in self.outputs(block):
                current[0] = index + 1
                if keep_outputs:
                    leaving.append(output)
        for group in groups:
            if group.few_tokens:
                group.hessian = torch.eye(
                    len(group.hessian), dtype=dtype, device=group.hessian.device
                )
        if keep_outputs:
            self._leaving = {block: leaving}
        return groups

    def advance(self, block: int) -> None:
        """Replace the activations by the block's outputs: those kept, else by its weights now."""
        leaving = enumerate(self._leaving.pop(block)) if block in self._leaving else None
        for index, output in leaving or self.outputs(block):
            self.enter(block + 1, index, output)

    def enter(self, block: int, index: int, hidden: torch.Tensor) -> None:
        """Let activations [B, T, d] of a batch enter a block, with what the model adds there."""
        added = self._added[index][block] if block < len(self._added[index]) else None
        self.hidden[index] = hidden if added is None else hidden + added


def block_walk(adapter: Adapter, proxy: ProxyData, parameters: ObsParameters) -> BlockWalk:
    """The walk over a model on its calibration data."""
    return BlockWalk(
        adapter,
        calibration_inputs(adapter, proxy, parameters.calibration),
        parameters.calibration_tokens,
        parameters.drifting_share,
    )


@contextmanager
def _accumulating(
    group: GroupHessian, selected: list[torch.Tensor], current: list[int]
) -> Iterator[None]:
    def add(module: nn.Module, args: tuple[Any, ...]) -> None:
        rows = first.inputs(args, selected[current[0]])
        if len(rows):
            group.tokens = accumulate(group.hessian, group.tokens, rows)

    first = group.matrices[0]
    handle = first.module.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()
