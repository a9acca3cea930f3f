"""A LLaVA checkpoint as three ONNX graphs of fixed shape and one table of embeddings.

The TorchScript exporter traces the model without the weights of its linear layers, which
`matrices` adds. A decoder beyond 2 GiB lies in one data file that both language graphs share.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from efficientllava.errors import UserError
from efficientllava.export.graphs.heads import with_padded_heads
from efficientllava.export.graphs.matrices import (
    matrix_bytes,
    placeholders,
    put_inside,
    put_outside,
    used_layers,
    write_data,
)
from efficientllava.files import save_tensors
from efficientllava.models.checkpoint import check_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.reading import read_model_config

OPSET = 14
IR_VERSION = 8
DATA, VISION_DATA = "decoder.data", "vision.data"
"""Weights that are too large for a graph; prefill and decode share the first file."""
# protobuf's limit for one file, less what is no matrix of a linear layer
LARGEST_GRAPH = 2 * 1024**3 - 64 * 1024**2
FILES = ("vision.onnx", "prefill.onnx", "decode.onnx", DATA, VISION_DATA, "embeddings.safetensors")
"""What `export_graphs` writes; data files where they are needed alone."""
EMBEDDING = "embed_tokens.weight"
FAMILY = "llava"
"""The model type whose graphs are written here."""


class RollingLayer(DynamicLayer):
    """A layer's cache of fixed length: new tokens enter on the right, old ones leave left."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [1, heads, new, head width]; the length stays."""
        new = key_states.shape[-2]
        self.keys = torch.cat([self.keys[:, :, new:], key_states], dim=-2)
        self.values = torch.cat([self.values[:, :, new:], value_states], dim=-2)
        return self.keys, self.values


class VisionGraph(nn.Module):
    """pixel_values [1, 3, height, width] -> image_features [1, image tokens, width]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        output = self.model.get_image_features(pixel_values=pixel_values, return_dict=True)
        return torch.stack(list(output.pooler_output))


class LanguageGraph(nn.Module):
    """The decoder and its head; with a cache when `past` is given (decode), else prefill.

    inputs_embeds [1, new, width], attention_mask [1, 1, new, attended] (added to the scores),
    position_ids [1, new], past keys and values per block [1, heads, context, head width]
    -> logits of the last position [1, vocabulary], present keys and values per block.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        adapter = adapter_for(model)
        self.language_model, self.blocks = adapter.language_model, len(adapter.blocks)
        self.lm_head = model.get_output_embeddings()

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        layers = [
            RollingLayer(past[2 * index], past[2 * index + 1]) if past else DynamicLayer()
            for index in range(self.blocks)
        ]
        hidden = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=Cache(layers=layers),
            use_cache=True,
        ).last_hidden_state
        present = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return (self.lm_head(hidden[:, -1]), *present)


def cache_names(prefix: str, blocks: int) -> list[str]:
    """Names of a cache's tensors, in order: PREFIX.0.key, PREFIX.0.value, PREFIX.1.key, ..."""
    return [f"{prefix}.{index}.{part}" for index in range(blocks) for part in ("key", "value")]


def cache_shape(model: PreTrainedModel, length: int) -> tuple[int, int, int, int]:
    """Shape of the keys (and of the values) of one block: [1, heads, length, head width]."""
    config = model.config.get_text_config()
    head_width = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return 1, config.num_key_value_heads, length, head_width


def pixel_shape(model: PreTrainedModel) -> tuple[int, int, int, int]:
    """Shape of one image at the entrance of the vision tower: [1, channels, height, width]."""
    vision = model.config.vision_config
    return 1, getattr(vision, "num_channels", 3), vision.image_size, vision.image_size


def not_exportable(checkpoint: Path) -> str | None:
    """Why no graphs can be written of a checkpoint, whatever the parameters; None where they can.

    Raises:
        UserError: as `check_checkpoint`.
    """
    check_checkpoint(checkpoint)
    family = str(read_model_config(checkpoint).get("model_type"))
    if family != FAMILY:
        return f"models of type '{family}' are not exported, only those of type '{FAMILY}'"
    return None


def export_graphs(model: PreTrainedModel, folder: Path, prompt_tokens: int, context: int) -> None:
    """Write vision.onnx, prefill.onnx, decode.onnx and embeddings.safetensors into a folder.

    Of a decoder beyond 2 GiB the weights lie in decoder.data. They are written from where they are:
    beside the model, memory is needed for a few rows of one matrix.

    Raises:
        UserError: the model has fewer positions than the context.
    """
    model = with_padded_heads(model)
    text = model.config.get_text_config()
    if context > text.max_position_embeddings:
        raise UserError(
            f"context {context} exceeds the {text.max_position_embeddings} positions of the model",
            where="params.yaml, export",
        )
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    blocks, width = text.num_hidden_layers, text.hidden_size
    cache = [torch.zeros(cache_shape(model, context)) for _ in range(2 * blocks)]
    present = cache_names("present", blocks)
    language_inputs = ["inputs_embeds", "attention_mask", "position_ids"]
    with _eager_attention(model), torch.no_grad():
        _write_graph(
            VisionGraph(model),
            (torch.zeros(pixel_shape(model)),),
            folder / "vision.onnx",
            ["pixel_values"],
            ["image_features"],
        )
        _write_graph(
            LanguageGraph(model),
            (
                torch.zeros(1, prompt_tokens, width),
                torch.zeros(1, 1, prompt_tokens, prompt_tokens),
                torch.zeros(1, prompt_tokens, dtype=torch.int64),
            ),
            folder / "prefill.onnx",
            language_inputs,
            ["logits", *present],
        )
        _write_graph(
            LanguageGraph(model),
            (
                torch.zeros(1, 1, width),
                torch.zeros(1, 1, 1, context),
                torch.zeros(1, 1, dtype=torch.int64),
                *cache,
            ),
            folder / "decode.onnx",
            [*language_inputs, *cache_names("past_key_values", blocks)],
            ["logits", *present],
        )
    save_tensors(
        folder / "embeddings.safetensors", {EMBEDDING: model.get_input_embeddings().weight}
    )


@contextlib.contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Plain matrix products and a softmax: the form that every runtime's optimiser knows."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _write_graph(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
) -> None:
    """Write one graph, and its data file where it is too large and the file is not there yet."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), placeholders(module) as linears:
        # tracing warns of every Python number that becomes a constant: all shapes are fixed here
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            arguments,
            buffer,  # type: ignore[arg-type]
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_model_from_string(buffer.getvalue())
    layers = used_layers(model, linears)
    if matrix_bytes(layers) <= LARGEST_GRAPH:
        put_inside(model, layers)
    else:
        data = path.with_name(VISION_DATA if isinstance(module, VisionGraph) else DATA)
        put_outside(model, layers, data)
        if not data.exists():
            write_data(layers, data)
    # DeepSparse 1.8 reads up to 8
    model.ir_version = IR_VERSION
    onnx.save_model(model, str(path))
    onnx.checker.check_model(str(path))
