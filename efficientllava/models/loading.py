"""The model that is pruned: from a folder, the hub or memory. Weights are read when they are used.

`load` is part of the public API: `from efficientllava import load`.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel

from efficientllava.errors import UserError
from efficientllava.files import file_digest, value_digest
from efficientllava.models.checkpoint import (
    check_checkpoint,
    load_model,
    load_processor,
    save_checkpoint,
)
from efficientllava.models.families import Family, family_of
from efficientllava.models.generic import with_found_family
from efficientllava.models.packed import require_unpacked
from efficientllava.models.processors.one_image import check_images
from efficientllava.models.source import CHECKPOINT_FILES, hub_snapshot, require_source

WHERE = "load"
logger = logging.getLogger(__name__)


class VisionLanguageModel:
    """A checkpoint that can be pruned, or a model in memory that becomes one when it is needed.

    Attributes:
        family: the entry of its model type.
        description: where it comes from, in words.
    """

    def __init__(self, family: Family, description: str, folder: Path | None = None) -> None:
        self.family, self.description, self._given = family, description, folder

    @cached_property
    def folder(self) -> Path:
        """The folder of the checkpoint, which must not be written to."""
        assert self._given is not None
        return self._given

    @cached_property
    def digest(self) -> str:
        """sha256 over the names and contents of the checkpoint's files; reads all of them once."""
        files = {path for pattern in CHECKPOINT_FILES for path in self.folder.glob(pattern)}
        return value_digest(
            {path.relative_to(self.folder).as_posix(): file_digest(path) for path in files}
        )

    @cached_property
    def processor(self) -> Any:
        """The processor, or of a text-only model its tokenizer as one: see `load_processor`.

        Raises:
            UserError: the folder holds none, or one that cannot be used.
        """
        return load_processor(self.folder)

    @cached_property
    def reads(self) -> str:
        """A digest of how it reads text and images: calibration data is drawn for that."""
        processor = self.processor
        images = getattr(processor, "image_processor", None)
        settings = None if images is None else images.to_json_string()
        return value_digest([processor.tokenizer.get_vocab(), settings])

    def check_images(self) -> None:
        """Check that processor and model agree about images: see `one_image.check_images`.

        Raises:
            UserError: they do not.
        """
        if self.family.takes_images:
            check_images(self.processor, load_model(self.folder, checked=True), self.description)

    def __repr__(self) -> str:
        return f"<{self.family.kind}: {self.description}>"


class _InMemory(VisionLanguageModel):
    """Saved to a temporary folder at the first use, removed with the last reference."""

    def __init__(self, family: Family, model: PreTrainedModel, processor: Any) -> None:
        super().__init__(family, f"{type(model).__name__} from memory")
        self._pair = (model, processor)

    @cached_property
    def folder(self) -> Path:
        """The temporary folder: the model as it was when this was first asked for."""
        model, processor = self._pair
        self._temporary = TemporaryDirectory(prefix="efficientllava-")
        folder = Path(self._temporary.name) / "model"
        save_checkpoint(model, processor, folder)
        return folder


class _Generic(VisionLanguageModel):
    """A checkpoint whose family is found by structure, in a temporary folder of links."""

    def __init__(self, given: Path, description: str) -> None:
        self._temporary = TemporaryDirectory(prefix="efficientllava-")
        folder = with_found_family(given, Path(self._temporary.name) / "model")
        super().__init__(check_checkpoint(folder), description, folder)


def load(
    model: str | Path | tuple[PreTrainedModel, Any],
    revision: str | None = None,
    family: str = "auto",
) -> VisionLanguageModel:
    """Name the model that is pruned. Its weights are checked and read later.

    Args:
        model: a folder that `save_pretrained` wrote, a hub id, or (model, processor) in memory;
            the processor of a text-only model is its tokenizer.
        revision: the commit of a hub id. What the hub's cache holds is not fetched again.
        family: "auto", or "generic", which finds decoder and projector by structure where the
            model's type is not known; a warning says what was found.

    Raises:
        UserError: no such folder, no safetensors, packed matrices, an unknown model type, a hub id
            without a commit, or the hub does not give it.
    """
    if family not in ("auto", "generic"):
        raise UserError(f"{family!r} is no family", where=WHERE, remedy="use auto or generic")
    if isinstance(model, (str, Path)):
        folder = require_source(model, revision, WHERE, "`revision`")
        if folder is None:
            folder, described = hub_snapshot(str(model), revision, WHERE), f"{model} at {revision}"
        else:
            if revision is not None:
                logger.warning("%s is a folder: revision %s is not looked at", folder, revision)
            folder, described = folder.resolve(), str(folder)
        if family == "generic":
            return _Generic(folder, described)
        entry = check_checkpoint(folder)
        require_unpacked(folder)
        return VisionLanguageModel(entry, described, folder)
    if not (isinstance(model, tuple) and len(model) == 2):
        raise UserError(
            f"{type(model).__name__} is no model that can be pruned",
            where=WHERE,
            remedy="give a folder, a hub id with `revision`, or (model, processor)",
        )
    loaded, processor = model
    if not isinstance(loaded, PreTrainedModel) or not hasattr(processor, "save_pretrained"):
        raise UserError(
            f"({type(loaded).__name__}, {type(processor).__name__}) is no model with its processor",
            where=WHERE,
            remedy="give a transformers model and the processor or tokenizer that belongs to it",
        )
    if getattr(loaded, "is_quantized", False):
        raise UserError(
            "the model is packed or quantized and cannot be pruned",
            where=WHERE,
            remedy="give the dense model; model.dequantize() makes it of a packed one",
        )
    return _InMemory(family_of(loaded.config), loaded, processor)
