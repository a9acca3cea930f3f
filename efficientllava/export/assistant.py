"""Questions about images answered through exported graphs. Needs no torch and no checkpoint.

The prompt is right-aligned in the prefill graph; its keys and values are copied into the
right end of the decode graph's cache, which rolls left by one with every token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import AutoProcessor

from efficientllava.data.images import read_rgb
from efficientllava.data.prompts import chat_prompt
from efficientllava.errors import UserError
from efficientllava.export.runtimes import Arrays, Runtime, open_graph, unavailable
from efficientllava.registry import RUNTIMES

# a finite number: -inf gives NaN where a padding row has nothing to attend to
MASKED = -1e4
GRAPHS = ("vision", "prefill", "decode")


@dataclass(frozen=True)
class Prompt:
    """What the model is asked: the text with its image token, and the image."""

    text: str
    image: Path | None


def read_image(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        UserError: the file is missing or no image, or as `read_rgb`.
    """
    return read_rgb(path, str(path), "no such image", "not a readable image")


def processed(processor: Any, prompt: Prompt, tensors: str) -> Any:
    """The processor's input_ids (image tokens repeated) and pixel_values of one prompt.

    Args:
        tensors: "np" or "pt".

    Raises:
        UserError: the image cannot be read, or text and image do not go together.
    """
    images = None if prompt.image is None else [read_image(prompt.image)]
    try:
        return processor(text=[prompt.text], images=images, return_tensors=tensors)
    except ValueError as error:
        raise UserError(
            f"the processor refuses the prompt: {str(error).strip()}",
            where="prompt",
            remedy=f"write {processor.image_token} once where there is an image, else not at all",
        ) from error


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


class Assistant:
    """An exported folder in one runtime: processor, vision, embeddings, prefill, decode."""

    def __init__(self, folder: Path, runtime: str, threads: int = 1) -> None:
        """Compile the graphs.

        Raises:
            UserError: the folder is no export, or the runtime cannot be used here.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(
                "no such folder", where=str(folder), remedy="run the export stage first"
            )
        if (reason := _reason_not_exported(folder)) is not None:
            raise UserError(
                f"the model was not exported ({reason})",
                where=str(folder),
                remedy="ask the checkpoint it was to be exported from, with transformers",
            )
        self.runtime = runtime
        self.graphs = {
            name: open_graph(runtime, folder / f"{name}.onnx", threads) for name in GRAPHS
        }
        try:
            (self._table,) = load_file(folder / "embeddings.safetensors").values()
            settings = json.loads((folder / "generation_config.json").read_text("utf-8-sig"))
            self.processor: Any = AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(
                f"not a complete export ({error})",
                where=str(folder),
                remedy="run the export stage again",
            ) from error
        ends = settings.get("eos_token_id")
        self.ends: list[int] = ends if isinstance(ends, list) else [] if ends is None else [ends]
        self.new_tokens: int = settings["max_new_tokens"]

    def features(self, pixel_values: np.ndarray) -> np.ndarray:
        """pixel_values [images, 3, height, width] -> features [images * image tokens, width]."""
        parts = [
            self.graphs["vision"].run({"pixel_values": pixels[None].astype(np.float32)})
            for pixels in pixel_values
        ]
        return np.concatenate([part["image_features"][0] for part in parts])

    def embeddings(self, input_ids: Sequence[int], features: np.ndarray | None) -> np.ndarray:
        """Token embeddings [tokens, width], image tokens replaced by features in their order."""
        ids = np.asarray(input_ids)
        embedded = self._table[ids].astype(np.float32)
        if features is not None:
            embedded[ids == self.processor.image_token_id] = features
        return embedded

    def read(self, prompt: Prompt) -> np.ndarray:
        """A prompt's embeddings [tokens, width], its image features merged in."""
        inputs = processed(self.processor, prompt, "np")
        features = self.features(inputs["pixel_values"]) if "pixel_values" in inputs else None
        return self.embeddings(inputs["input_ids"][0], features)

    def decoding(self) -> Decoding:
        """A new text."""
        return Decoding(self.graphs["prefill"], self.graphs["decode"])

    def step(self, decoding: Decoding, token: int) -> np.ndarray:
        """Feed a token; the logits [vocabulary] of what comes next."""
        return decoding.step(self._table[token])

    def generate(self, prompt: Prompt, new_tokens: int | None = None) -> list[int]:
        """Greedy token ids after a prompt, an end token included when one came.

        Raises:
            UserError: the prompt is longer than the prefill graph, or the answer would outgrow
                the cache.
        """
        decoding = self.decoding()
        logits = decoding.start(self.read(prompt))
        tokens: list[int] = []
        for _ in range(self.new_tokens if new_tokens is None else new_tokens):
            if tokens:
                logits = self.step(decoding, tokens[-1])
            tokens.append(int(logits.argmax()))
            if tokens[-1] in self.ends:
                break
        return tokens

    def text(self, tokens: Sequence[int]) -> str:
        """Token ids as text, without special tokens."""
        return str(self.processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _recorded_runtimes(folder: Path) -> dict[str, Any]:
    """What export.json says of each runtime; nothing where it does not say."""
    try:
        record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        return dict(record["runtimes"])
    except (OSError, ValueError, KeyError):
        return {}


def _reason_not_exported(folder: Path) -> str | None:
    """Why the export wrote no graphs; None where it did, or did not say."""
    rows = _recorded_runtimes(folder).values()
    if not rows or any(row.get("available", True) for row in rows):
        return None
    return next((str(row["reason"]) for row in rows if "reason" in row), None)


def usable_runtime(folder: Path) -> str:
    """The first runtime that worked when the folder was exported and can be imported here.

    Where there is none, one that worked: to open a graph in it says what is missing.
    """
    recorded = _recorded_runtimes(folder)
    # DeepSparse crashes on some models: then the export says that it is not available
    worked = [name for name in RUNTIMES if recorded.get(name, {}).get("available", True)]
    usable = (name for name in worked if unavailable(name) is None)
    return next(usable, [*RUNTIMES, *worked][-1])


def answer(
    folder: Path,
    image: Path | None,
    question: str,
    runtime: str | None = None,
    threads: int = 1,
    new_tokens: int | None = None,
    raw: bool = False,
) -> str:
    """Answer a question about an image with an exported model.

    Args:
        folder: what the export stage wrote.
        question: the user's message (see `chat_prompt`), or with `raw` the whole prompt; an image
            token is put before it when there is an image and the prompt has none.
        runtime: as in `export.runtimes`; when None the first that worked at the export and can be
            used here.

    Raises:
        UserError: as `Assistant` and `Assistant.generate`.
    """
    if runtime is None:
        runtime = usable_runtime(folder)
    assistant = Assistant(folder, runtime, threads)
    token = assistant.processor.image_token
    given = None if image is None or token in question else token
    prompt = chat_prompt(None if raw else assistant.processor, question, given)
    return assistant.text(assistant.generate(Prompt(prompt, image), new_tokens))
