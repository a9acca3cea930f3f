"""Questions about images answered through exported graphs. Needs no torch and no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field
from transformers import AutoProcessor

from efficientllava.data.images import read_rgb
from efficientllava.data.prompts import chat_prompt, processor_settings
from efficientllava.errors import UserError, library_reads
from efficientllava.export.decoding import AGAIN, ExportedModel, Inputs, Prompt
from efficientllava.export.runtimes import takes_graphs, unavailable
from efficientllava.reading import checked, read_json, require_readable
from efficientllava.registry import RUNTIMES

NO_IMAGE = "name an image file, e.g. a PNG or JPEG, or - for none"


def read_image(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        UserError: the file is missing or no image, or as `read_rgb`.
    """
    return read_rgb(path, str(path), "no such image", "not a readable image", NO_IMAGE)


@contextmanager
def refusals(processor: Any) -> Iterator[None]:
    """Report a processor's refusal of a prompt as an error that its writer can mend."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of whatever kind: processors check little of their settings
        token = getattr(processor, "image_token", None)
        raise UserError(
            f"the processor refuses the prompt: {str(error).strip()}",
            where="prompt",
            remedy=f"write {token} once where there is an image, else not at all" if token else "",
        ) from error


def graph_inputs(processor: Any, prompt: Prompt) -> Inputs:
    """A prompt as exported graphs take it: input_ids with image tokens repeated, pixel_values.

    Raises:
        UserError: the image cannot be read, or text and image do not go together.
    """
    image = None if prompt.image is None else read_image(prompt.image)
    settings = processor_settings(processor, prompt.text, image, "np")
    with refusals(processor):
        made = processor(text=[prompt.text], **settings)
    return Inputs(
        np.asarray(made["input_ids"][0]), processor.image_token_id, made.get("pixel_values")
    )


class Assistant:
    """An exported folder in one runtime: its graphs and its processor."""

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
        self.folder = folder
        self.runtime, self.model = runtime, ExportedModel(folder, runtime, threads)
        require_readable(folder)
        with library_reads("not a complete export", str(folder), AGAIN):
            self.processor: Any = AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )

    def generate(self, prompt: Prompt, new_tokens: int | None = None) -> list[int]:
        """Greedy token ids after a prompt, an end token included when one came.

        Raises:
            UserError: the prompt is longer than the prefill graph, or the answer would outgrow
                the cache.
        """
        inputs = graph_inputs(self.processor, prompt)
        with library_reads("the graphs do not fit each other", str(self.folder), AGAIN):
            return self.model.greedy(inputs, new_tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """Token ids as text, without special tokens."""
        return str(self.processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


class _Export(BaseModel):
    """What is read of export.json."""

    runtimes: dict[str, dict[str, Any]] = Field(min_length=1)


def _recorded_runtimes(folder: Path) -> dict[str, Any]:
    """What export.json says of each runtime; nothing where there is none.

    Raises:
        UserError: it is damaged.
    """
    file = folder / "export.json"
    if not file.exists():
        return {}
    record: _Export = checked(read_json(file), _Export, str(file), AGAIN)
    return record.runtimes


def _is_of_graphs(runtime: str) -> bool:
    """Whether a recorded runtime takes graphs; also one whose package is not installed any more."""
    return runtime not in RUNTIMES or takes_graphs(runtime)


def _reason_not_exported(folder: Path) -> str | None:
    """Why the export wrote no graphs; None where it did, or did not say."""
    rows = [row for name, row in _recorded_runtimes(folder).items() if _is_of_graphs(name)]
    if not rows or any(row.get("available", True) for row in rows):
        return None
    return next((str(row["reason"]) for row in rows if "reason" in row), None)


def usable_runtime(folder: Path) -> str:
    """The first runtime that worked when the folder was exported and can be imported here.

    Where there is none, one that worked: to open a graph in it says what is missing.
    """
    recorded = _recorded_runtimes(folder)
    # DeepSparse crashes on some models: then the export says that it is not available
    worked = [
        name
        for name in RUNTIMES
        if takes_graphs(name)
        and recorded.get(name, {"available": not recorded}).get("available", True)
    ]
    usable = (name for name in worked if unavailable(name) is None)
    return next(usable, ["onnxruntime", *worked][-1])


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
