"""A checkpoint packed and measured in transformers: size, parity, answers and speed.

For models of all families. The dense model runs in torch as it comes, and once more with its
linear layers and experts multiplied by this package's dense kernel, which separates the gain of the
zeros from that of the kernels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

import efficientllava
from efficientllava.export.decoding import Prompt, Reference
from efficientllava.export.measure import not_available
from efficientllava.export.parity import Differences, require_parity
from efficientllava.export.reference import forced_logits, reference_answer
from efficientllava.export.speed import time_in_turns
from efficientllava.models.checkpoint import load_model, load_processor
from efficientllava.models.families import require_family
from efficientllava.models.weight_files import weight_files
from efficientllava.parameters import ExportParameters
from efficientllava.sparse.checkpoint import pack_checkpoint
from efficientllava.sparse.experts.files import packable_experts
from efficientllava.sparse.experts.layer import dense_experts
from efficientllava.sparse.layout import dtype_name
from efficientllava.sparse.pruned import NothingToPack

RUNTIME = "sparse"


def measure_packed(
    checkpoint: Path,
    dense: Path,
    folder: Path,
    prompts: Sequence[Prompt],
    parameters: ExportParameters,
    style: str | None = None,
    references: Sequence[Reference] | None = None,
) -> dict[str, Any]:
    """Pack a checkpoint into a folder and measure it against the dense one.

    Args:
        style: see `load_processor`.
        references: PyTorch's answers in float32, where they are known.

    Returns:
        {"available": False, "reason", "remedy"} where no matrix becomes smaller packed; else what
        `measure_graphs` gives, with "bytes" (of each checkpoint's weights) and "references".

    Raises:
        UserError: a checkpoint cannot be read, or the packed model differs from the pruned one.
    """
    try:
        pack_checkpoint(checkpoint, folder)
    except NothingToPack as error:
        return not_available(RUNTIME, error.what) | {"of_model": True}
    packed, processor = load_model(folder), load_processor(checkpoint, style)
    precision = dtype_name(packed.dtype)
    if references is None or precision != "float32":
        pruned = load_model(checkpoint)
        references = [
            reference_answer(pruned, processor, prompt, parameters.new_tokens) for prompt in prompts
        ]
        del pruned
    measured = {
        "available": True,
        "version": efficientllava.__version__,
        "precision": precision,
        "bytes": {
            f"{name}_checkpoint": sum(path.stat().st_size for path in weight_files(place))
            for name, place in (("dense", dense), ("pruned", checkpoint), ("packed", folder))
        },
        "references": references,
        **_parity(packed, processor, references, precision),
    }
    with _threads(parameters.threads):
        _time(load_model(dense), packed, parameters, measured)
    return measured


def _parity(
    packed: PreTrainedModel, processor: Any, references: Sequence[Reference], precision: str
) -> dict[str, Any]:
    """The tokens, and how far the logits are from PyTorch's when it is made to give its tokens."""
    differences, tokens = Differences(precision), []
    for reference in references:
        logits = forced_logits(packed, processor, reference)
        differences.compare("prefill_logits", logits[0], reference.logits[0])
        if len(logits) > 1:
            differences.compare("decode_logits", logits[1:], reference.logits[1:])
        tokens.append(
            reference_answer(packed, processor, reference.prompt, len(reference.tokens)).tokens
        )
    require_parity(RUNTIME, differences.worst, differences.tolerance)
    return {
        "parity": differences.worst,
        "tolerance": differences.tolerance,
        "tokens": tokens,
        "expected": [reference.tokens for reference in references],
    }


def _time(
    dense: PreTrainedModel,
    packed: PreTrainedModel,
    parameters: ExportParameters,
    measured: dict[str, Any],
) -> None:
    models = {"dense": dense, "dense_kernel": _by_dense_kernel(dense), "pruned": packed}
    for phase, calls_of in (("prefill", _prefill), ("decode", _decode)):
        length = parameters.prompt_tokens if phase == "prefill" else parameters.context
        calls = {name: calls_of(model, length) for name, model in models.items()}
        time_in_turns(phase, calls, parameters.repetitions, parameters.threads, measured)


def _by_dense_kernel(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its layers and experts in our own dense kernel; weights are shared."""
    shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, shared)
    for name, experts in packable_experts(other).items():
        other.set_submodule(name, dense_experts(experts))
    for layer in other.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.forward = _dense_forward(layer)  # type: ignore[assignment, method-assign]
    return other


def _dense_forward(layer: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.efficientllava.dense_linear(x, layer.weight, layer.bias)
        return product

    return forward


def _tokens(model: PreTrainedModel, count: int) -> torch.Tensor:
    """[1, count] random tokens; embeddings would do for most families, but not for Gemma 4."""
    known = model.get_input_embeddings().num_embeddings
    return torch.randint(int(known), (1, count), generator=torch.Generator().manual_seed(0))


def _language_model(model: PreTrainedModel) -> torch.nn.Module:
    return model.get_submodule(require_family(model.config.model_type).language_model)


def _prefill(model: PreTrainedModel, tokens: int) -> Callable[[], object]:
    """A whole prompt to the logits of the next token."""
    decoder, head = _language_model(model), model.get_output_embeddings()
    prompt = _tokens(model, tokens)

    @torch.inference_mode()
    def call() -> object:
        output = decoder(input_ids=prompt, past_key_values=_cache(model), use_cache=True)
        return head(output.last_hidden_state[:, -1])

    return call


def _cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache; of linear attention its layers are known by the configuration alone."""
    config = model.config.get_text_config()
    linear = "linear_attention" in (getattr(config, "layer_types", None) or ())
    return DynamicCache(config=config) if linear else DynamicCache()


def _decode(model: PreTrainedModel, context: int) -> Callable[[], object]:
    """One token after a full cache, which is as long again afterwards."""
    decoder, head = _language_model(model), model.get_output_embeddings()
    cache, token = _cache(model), _tokens(model, 1)
    with torch.inference_mode():
        decoder(input_ids=_tokens(model, context - 1), past_key_values=cache, use_cache=True)
        cache.activate_past_recording()  # linear attention goes back by what it has recorded

    @torch.inference_mode()
    def call() -> object:
        output = decoder(input_ids=token, past_key_values=cache, use_cache=True)
        cache.crop(-1)
        return head(output.last_hidden_state[:, -1])

    return call


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
