"""What exported graphs compute against what PyTorch computes, number by number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import PreTrainedModel

from efficientllava.errors import UserError
from efficientllava.export.assistant import Assistant, Prompt, processed, require_length
from efficientllava.export.heads import with_padded_heads
from efficientllava.models.families import adapter_for

# largest absolute difference that is still called the same
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Reference:
    """PyTorch's greedy answer to one prompt.

    Attributes:
        features: image features [image tokens, width]; None without an image.
        tokens: the new token ids, an end token included when one came.
        logits: [new tokens, vocabulary], each row what its token was chosen from.
    """

    prompt: Prompt
    features: np.ndarray | None
    tokens: list[int]
    logits: np.ndarray


@torch.no_grad()
def reference_answer(
    model: PreTrainedModel,
    processor: Any,
    prompt: Prompt,
    new_tokens: int,
    prompt_tokens: int | None = None,
) -> Reference:
    """Answer a prompt with `model.generate`, greedily, and keep what it computed.

    Raises:
        UserError: the prompt cannot be read, or has more than `prompt_tokens` tokens.
    """
    inputs = processed(processor, prompt, "pt")
    if prompt_tokens is not None:
        require_length(inputs["input_ids"].shape[1], prompt_tokens)
    features = None
    if "pixel_values" in inputs:
        output = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
        features = torch.cat(list(output.pooler_output)).numpy()
    generated = model.generate(
        **{name: inputs[name] for name in inputs if name != "token_type_ids"},
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return Reference(prompt, features, tokens, torch.cat(generated.logits).numpy())


def parity(assistant: Assistant, references: list[Reference]) -> dict[str, float]:
    """Largest absolute differences from PyTorch over all prompts.

    The decode steps are fed PyTorch's tokens, so that one differing choice does not hide what
    comes after it.

    Returns:
        features, prefill_logits and decode_logits; features only when a prompt has an image,
        decode_logits only when an answer has more than one token.
    """
    worst: dict[str, float] = {}

    def compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        difference = np.abs(ours - theirs).max()
        # NaN would pass every comparison with a tolerance
        worst[name] = max(worst.get(name, 0.0), float(np.nan_to_num(difference, nan=np.inf)))

    for reference in references:
        if reference.features is not None:
            pixels = processed(assistant.processor, reference.prompt, "np")["pixel_values"]
            compare("features", assistant.features(pixels), reference.features)
        decoding = assistant.decoding()
        logits = decoding.start(assistant.read(reference.prompt))
        compare("prefill_logits", logits, reference.logits[0])
        for token, expected in zip(reference.tokens, reference.logits[1:], strict=False):
            compare("decode_logits", assistant.step(decoding, token), expected)
    return worst


def require_parity(runtime: str, errors: dict[str, float], tolerance: float) -> None:
    """Refuse graphs that compute something else.

    Raises:
        UserError: naming what differs and by how much.
    """
    beyond = {name: error for name, error in errors.items() if not error <= tolerance}
    if beyond:
        told = ", ".join(f"{name} by {error:.3g}" for name, error in beyond.items())
        raise UserError(
            f"the exported model differs from PyTorch: {told} (at most {tolerance:g} is allowed)",
            where=f"export, {runtime}",
            remedy=f"take {runtime} out of export.runtimes, or report the model: nothing was "
            "exported",
        )


def graph_zeros(path: Path) -> dict[str, int]:
    """Zeros in the constant weight of each linear layer of a graph, by the module's name."""
    graph = onnx.load_model(str(path)).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    zeros = {}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants:
            module = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".")
            weight = numpy_helper.to_array(constants[node.input[1]])
            zeros[module] = int(weight.size - np.count_nonzero(weight))
    return zeros


def sparsity(model: PreTrainedModel, path: Path) -> float:
    """The share of zeros among the prunable weights as the graph holds them, padding apart.

    Raises:
        UserError: a matrix is no constant of the graph, or has other zeros than the checkpoint.
    """
    zeros, adapter = graph_zeros(path), adapter_for(model)
    padded = adapter_for(with_padded_heads(model))
    total = 0
    for matrix, wider in zip(adapter.matrices, padded.matrices, strict=True):
        found = zeros.get(matrix.name.removeprefix("model."))
        padding = wider.size - matrix.size
        expected = wider.size - int(torch.count_nonzero(matrix.weight))
        if found != expected:
            raise UserError(
                f"{matrix.name} has {expected - padding} zeros in the checkpoint"
                f"{f' and {padding} of padding' if padding else ''}, and "
                f"{'no constant weight' if found is None else found} in the graph",
                where=f"export, {path.name}",
                remedy="report the model: its graph would not run sparse",
            )
        total += found - padding
    return total / sum(adapter.sizes)
