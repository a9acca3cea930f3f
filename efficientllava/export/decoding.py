"""Exported graphs as one model: a prompt in, tokens out. Needs neither torch nor transformers.

The prompt is right-aligned in the prefill graph; its keys and values are copied into the
right end of the decode graph's cache, which rolls left by one with every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from efficientllava.errors import UserError
from efficientllava.export.runtimes import Arrays, Runtime, open_graph
from efficientllava.reading import checked, load_tensors, read_json, require_floats

# a finite number: -inf gives NaN where a padding row has nothing to attend to
MASKED = -1e4
GRAPHS = ("vision", "prefill", "decode")
AGAIN = "run the export stage again"


@dataclass(frozen=True)
class Prompt:
    """What the model is asked: the text with its image token, and the image."""

    text: str
    image: Path | None


@dataclass(frozen=True)
class Inputs:
    """A prompt as its processor made it.

    Attributes:
        input_ids: [tokens], image tokens repeated.
        image_token: the id of these.
        pixel_values: [images, channels, height, width]; None without an image.
    """

    input_ids: np.ndarray
    image_token: int
    pixel_values: np.ndarray | None


@dataclass(frozen=True)
class Reference:
    """PyTorch's greedy answer to one prompt.

    Attributes:
        inputs: of a family whose graphs are written; None for others.
        features: image features [image tokens, width]; None without an image.
        tokens: the new token ids, an end token included when one came.
        logits: [new tokens, vocabulary], each row what its token was chosen from.
    """

    prompt: Prompt
    inputs: Inputs | None
    features: np.ndarray | None
    tokens: list[int]
    logits: np.ndarray


def require_length(tokens: int, prompt_tokens: int) -> None:
    """Refuse a prompt that the prefill graph cannot take.

    Raises:
        UserError: saying both lengths.
    """
    if tokens > prompt_tokens:
        raise UserError(
            f"the prompt has {tokens} tokens (image tokens counted), the prefill graph takes "
            f"{prompt_tokens}",
            where="prompt",
            remedy="ask a shorter question, or export with a larger export.prompt_tokens",
        )


class Decoding:
    """One text in progress: embeddings in, logits out, the cache kept between steps."""

    def __init__(self, prefill: Runtime, decode: Runtime) -> None:
        self._prefill, self._decode = prefill, decode
        self.prompt_tokens = prefill.shapes["inputs_embeds"][1]
        self.context = decode.shapes["attention_mask"][-1]
        self.length = 0
        self.cache: Arrays = {}

    def start(self, embeddings: np.ndarray) -> np.ndarray:
        """Read a prompt [tokens, width]; the logits [vocabulary] of what comes next.

        Raises:
            UserError: the prompt is longer than the prefill graph.
        """
        tokens = len(embeddings)
        outputs = self._prefill.run(prefill_inputs(embeddings, self.prompt_tokens))
        self.length, self.cache = tokens, {}
        for name, shape in self._decode.shapes.items():
            if name.startswith("past_key_values."):
                past = np.zeros(shape, np.float32)
                present = outputs[name.replace("past_key_values", "present")]
                past[:, :, self.context - tokens :] = present[:, :, self.prompt_tokens - tokens :]
                self.cache[name] = past
        return outputs["logits"][0]

    def step(self, embedding: np.ndarray) -> np.ndarray:
        """Read one more token [width]; the logits [vocabulary] of what comes next.

        Raises:
            UserError: the cache is full.
        """
        if self.length == self.context:
            raise UserError(
                f"the text has reached the {self.context} tokens of the decode graph",
                where="generation",
                remedy="export with a larger export.context",
            )
        outputs = self._decode.run(
            {**decode_inputs(embedding, self.length, self.context), **self.cache}
        )
        self.length += 1
        self.cache = {
            name: outputs[name.replace("past_key_values", "present")] for name in self.cache
        }
        return outputs["logits"][0]


def prefill_inputs(embeddings: np.ndarray, prompt_tokens: int) -> Arrays:
    """Embeddings [tokens, width] right-aligned in the prefill graph's inputs.

    Raises:
        UserError: more tokens than the graph takes.
    """
    tokens, width = embeddings.shape
    require_length(tokens, prompt_tokens)
    padding = prompt_tokens - tokens
    padded = np.zeros((1, prompt_tokens, width), np.float32)
    padded[0, padding:] = embeddings
    position = np.arange(prompt_tokens)
    visible = (position[None] <= position[:, None]) & (position[None] >= padding)
    return {
        "inputs_embeds": padded,
        "attention_mask": np.where(visible, 0.0, MASKED).astype(np.float32)[None, None],
        "position_ids": np.maximum(position - padding, 0)[None].astype(np.int64),
    }


def decode_inputs(embedding: np.ndarray, length: int, context: int) -> Arrays:
    """One token [width] that follows `length` others; the cache's tensors are not among these."""
    mask = np.full((1, 1, 1, context), MASKED, np.float32)
    mask[..., context - length - 1 :] = 0.0
    return {
        "inputs_embeds": embedding[None, None].astype(np.float32),
        "attention_mask": mask,
        "position_ids": np.array([[length]], np.int64),
    }


class _Generation(BaseModel):
    """What is read of generation_config.json."""

    max_new_tokens: int = Field(ge=1, le=2**31)
    eos_token_id: int | list[int] | None = None


class ExportedModel:
    """The graphs of an exported folder in one runtime, and its table of embeddings."""

    def __init__(self, folder: Path, runtime: str, threads: int = 1) -> None:
        """Compile the graphs.

        Raises:
            UserError: the folder is no export, or the runtime cannot be used here.
        """
        self.runtime = runtime
        self.graphs = {
            name: open_graph(runtime, folder / f"{name}.onnx", threads) for name in GRAPHS
        }
        require_floats(folder / "embeddings.safetensors")
        tables = load_tensors(folder / "embeddings.safetensors", "np")
        if len(tables) != 1 or (table := next(iter(tables.values()))).ndim != 2:
            what = f"holds {len(tables)} tensors in the place of one table"
            raise UserError(what, str(folder / "embeddings.safetensors"), AGAIN)
        self._table: Any = table
        file = folder / "generation_config.json"
        settings = checked(read_json(file), _Generation, str(file), AGAIN)
        self.new_tokens: int = settings.max_new_tokens
        ends = settings.eos_token_id
        self.ends: list[int] = ends if isinstance(ends, list) else [] if ends is None else [ends]

    def features(self, pixel_values: np.ndarray) -> np.ndarray:
        """pixel_values [images, 3, height, width] -> features [images * image tokens, width]."""
        parts = [
            self.graphs["vision"].run({"pixel_values": pixels[None].astype(np.float32)})
            for pixels in pixel_values
        ]
        return np.concatenate([part["image_features"][0] for part in parts])

    def read(self, inputs: Inputs) -> np.ndarray:
        """A prompt's embeddings [tokens, width], its image features merged in."""
        ids = np.asarray(inputs.input_ids)
        embedded = self._table[ids].astype(np.float32)
        if inputs.pixel_values is not None:
            embedded[ids == inputs.image_token] = self.features(inputs.pixel_values)
        return embedded

    def decoding(self) -> Decoding:
        """A new text."""
        return Decoding(self.graphs["prefill"], self.graphs["decode"])

    def step(self, decoding: Decoding, token: int) -> np.ndarray:
        """Feed a token; the logits [vocabulary] of what comes next."""
        return decoding.step(self._table[token])

    def greedy(self, inputs: Inputs, new_tokens: int | None = None) -> list[int]:
        """Greedy token ids after a prompt, an end token included when one came.

        Raises:
            UserError: the prompt is longer than the prefill graph, or the answer would outgrow
                the cache.
        """
        decoding = self.decoding()
        logits = decoding.start(self.read(inputs))
        tokens: list[int] = []
        for _ in range(self.new_tokens if new_tokens is None else new_tokens):
            if tokens:
                logits = self.step(decoding, tokens[-1])
            tokens.append(int(logits.argmax()))
            if tokens[-1] in self.ends:
                break
        return tokens
