"""The final pruned model: made by its method, verified, saved, loaded again and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from efficientllava import __version__
from efficientllava.allocation.context import Allocation, Context
from efficientllava.calibration.opened import OpenModel, block_by_block, whole
from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model, save_checkpoint
from efficientllava.models.families import Adapter, adapter_for, device_of, text_inputs
from efficientllava.offload.blocks_on_disk import blocks_on_disk
from efficientllava.progress import Event
from efficientllava.pruning.methods import Method

GRADIENTS = 3
"""Taylor importance holds weights, their gradients and the product of both."""


def finalize(
    method: Method, context: Context, allocation: Allocation, folder: Path
) -> dict[str, Any]:
    """Prune the dense model with a method's ratios and save it as a transformers checkpoint.

    Args:
        folder: where the checkpoint goes, with the record in pruning.json; whole or not at all.

    Returns:
        The content of pruning.json, and `parameters`, the number of weights that are left.

    Raises:
        UserError: as the method's `apply`; the model does not fit on the device; the saved
            checkpoint is not the model that was pruned.
    """
    with _opened(method, context) as opened:
        model, device = cast("PreTrainedModel", opened.adapter.model), opened.adapter.device
        record = method.apply(context, opened, allocation) | {
            "method": method.name,
            "ratio": context.ratio,
            "digests": context.digests,
            "version": __version__,
        }
        write = None if opened.blocks is None else opened.blocks.save_weights
        context.progress(Event("saving", 0, 1))
        records = {"pruning.json": record}
        save_checkpoint(model, context.model, folder, records, write, sealed=True)
        context.progress(Event("saving", 1, 1))
        context.progress(Event("checking", 0, 2))
        reloaded = load_model(folder)
        require_kept_weights(
            load_model(context.model, checked=True), reloaded, method, allocation.projector
        )
        context.progress(Event("checking", 1, 2))
        used = None if device.type == "cpu" else device
        with blocks_on_disk(adapter_for(reloaded), folder, context.work / "reloaded", used):
            require_same_logits(model, reloaded, context.proxy)
        context.progress(Event("checking", 2, 2))
        return record | {"parameters": model.num_parameters()}


@contextmanager
def _opened(method: Method, context: Context) -> Iterator[OpenModel]:
    """The dense model; a structured method changes it as a whole, others block by block."""
    machine, obs = context.parameters.machine, context.parameters.obs
    if method.structured:
        # the smaller weights do not fit the dense model's files
        yield whole(context.model, machine, GRADIENTS if "gradients" in method.needs else 1)
        return
    with block_by_block(
        context.model,
        context.work,
        context.proxy,
        machine,
        losses=2,
        block_size=obs.block_size,
    ) as opened:
        yield opened


@torch.no_grad()
def require_kept_weights(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    method: Method,
    projector: Mapping[str, torch.Tensor],
) -> None:
    """Check that a pruned checkpoint holds the dense one's weights wherever nothing changed them.

    Both are what transformers reads from their folders. Prunable matrices may hold zeros instead
    where the method only sets weights to zero, and anything with other methods; structured methods
    may change all of the decoder blocks.

    Args:
        projector: state that the projector must have; empty for the dense model's own.

    Raises:
        UserError: a weight (named) differs.
    """
    before, after = adapter_for(dense), adapter_for(pruned)
    expected = dense.state_dict()
    if projector:
        assert before.projector is not None
        names = {id(value): name for name, value in dense.state_dict(keep_vars=True).items()}
        own = before.projector.state_dict(keep_vars=True)
        expected |= {
            names[id(own[key])]: value.to(own[key].dtype) for key, value in projector.items()
        }
    matrices = {matrix.parameter for matrix in before.matrices}
    blocks = _names_in_blocks(before) | _names_in_blocks(after)
    for name, value in pruned.state_dict().items():
        if method.structured and name in blocks:
            continue
        kept = expected.get(name)
        same = kept is not None and kept.dtype == value.dtype and kept.shape == value.shape
        if same and name in matrices:
            same = not method.keeps_weights or bool(((value == 0) | (value == kept)).all())
        elif same:
            same = torch.equal(value, kept)
        if not same:
            raise UserError(
                f"weight {name} is not the one that transformers reads from the dense model",
                where="pruned checkpoint",
                remedy="the dense model's files may have changed meanwhile: start again",
            )
    removed = blocks if method.structured else set()
    if missing := expected.keys() - pruned.state_dict().keys() - removed:
        raise UserError(f"has no weight {min(missing)}", where="pruned checkpoint")


def _names_in_blocks(adapter: Adapter) -> set[str]:
    own = {id(value) for block in adapter.blocks for value in block.parameters()}
    own |= {id(value) for block in adapter.blocks for value in block.buffers()}
    state = adapter.model.state_dict(keep_vars=True)
    return {name for name, value in state.items() if id(value) in own}


@contextmanager
def _aligned(model: PreTrainedModel) -> Iterator[None]:
    """While this lasts, every prunable module computes with copies of its weights.

    A product's last bit depends on where in memory its weights begin, and those of a file that is
    mapped begin anywhere. A module's copies live while it runs.
    """
    kept: dict[nn.Parameter, torch.Tensor] = {}

    def copy(module: nn.Module, args: Any) -> None:
        for parameter in module.parameters(recurse=False):
            kept[parameter], parameter.data = parameter.data, parameter.data.clone()

    def back(module: nn.Module, args: Any, output: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = kept.pop(parameter)

    with ExitStack() as hooks:
        for module in dict.fromkeys(matrix.module for matrix in adapter_for(model).matrices):
            hooks.callback(module.register_forward_pre_hook(copy).remove)
            hooks.callback(module.register_forward_hook(back).remove)
        yield


@torch.no_grad()
def require_same_logits(
    model: PreTrainedModel, reloaded: PreTrainedModel, proxy: ProxyData
) -> None:
    """Check that a model which was saved and loaded again gives the same logits, bit for bit.

    Raises:
        UserError: it does not.
    """
    segment = text_inputs(model, proxy.segments[:1].to(device_of(model)))
    logits = []
    for each in (model, reloaded):
        with _aligned(each):
            logits.append(each(**segment).logits)
    if not torch.equal(*logits):
        raise UserError(
            "the saved checkpoint does not give the logits of the model in memory",
            where="pruned checkpoint",
            remedy="see dtype in its config.json: saving must not lose precision",
        )
