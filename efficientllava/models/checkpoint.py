"""Transformers checkpoints: safetensors only, checked before they are trusted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
)

from efficientllava.data.conversations import IMAGE_TOKEN, TEMPLATES
from efficientllava.data.prompts import choose_template
from efficientllava.errors import UserError, library_reads
from efficientllava.files import DIGESTS, replacing, require_sealed, seal, write_json
from efficientllava.models.families import (
    FAMILIES,
    FOUND,
    Family,
    adapter_for,
    family_of,
    require_head,
)
from efficientllava.models.folder_kind import require_plain_checkpoint
from efficientllava.models.packed import check_config, has_record, is_packed
from efficientllava.models.processors.image_tokens import (
    check_image_size,
    fit_image_tokens,
    require_sizes,
)
from efficientllava.models.processors.llava_images import pads_images, use_original_images
from efficientllava.models.processors.still_images import needs_torchvision, processor_class
from efficientllava.models.processors.text_processor import TextProcessor
from efficientllava.models.skeleton import (
    check_size,
    model_class,
    read_config,
    without_weights,
)
from efficientllava.models.weight_files import (
    INDEX,
    check_finite,
    weight_files,
)
from efficientllava.reading import read_model_config, require_floats, require_readable
from efficientllava.terminal import quiet_transformers

SHARD_BYTES = 5 * 10**9
"""Larger checkpoints are saved in shards of this size."""

WEIGHTS_AND_RECORDS = (
    "config.json",
    INDEX,
    "training.json",
    "matrices.json",
    DIGESTS,
)
"""JSON files of a checkpoint that are not its processor's."""

PROCESSOR_FILES = ("*.json", "*.jinja", "*.model", "*.txt", TEMPLATES)
"""What is copied whole from a dense checkpoint to a pruned one, generation_config.json too."""


def check_checkpoint(folder: Path) -> Family:
    """Check a checkpoint without loading its weights.

    Returns:
        The entry of its model's family.

    Raises:
        UserError: as `weight_files`; the model's family is unknown to us; config.json does not
            describe the language model.
    """
    require_plain_checkpoint(folder)
    weight_files(folder)
    require_readable(folder)
    config = read_model_config(folder)
    family = family_of(config)
    # transformers would take the defaults, a model of 7 billion weights
    if not isinstance(config.get("text_config"), dict) and "hidden_size" not in config:
        raise UserError(
            "text_config, which describes the language model, is missing or no JSON object",
            where=str(Path(folder) / "config.json"),
            remedy="take config.json from where the weights come from",
        )
    return family


@quiet_transformers()
def load_model(
    folder: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    checked: bool = False,
) -> PreTrainedModel:
    """Load a vision-language or a text-only language model in evaluation mode, packed or not.

    On the CPU, weights in their own dtype are mapped from the files: they take no memory before
    they are used, and no more than the files after that.

    Args:
        dtype: of the weights; the checkpoint's own when None.
        device: where all of it goes; `offload.blocks_on_disk` brings a part of it there.
        checked: this process has loaded it before: its weights are not read once more for NaN.

    Raises:
        UserError: as `check_checkpoint`; weights missing or of another shape than the
            configuration says; NaN or inf in a weight (named); weights that are not as they were
            written, where that is recorded.
    """
    folder = Path(folder)
    family = check_checkpoint(folder)
    loader = model_class(family.takes_images)
    files = weight_files(folder)
    if is_packed(folder) or has_record(files):
        check_config(files, folder / "config.json")
    else:
        for file in files:
            require_floats(file)
    check_size(folder, family.takes_images)
    config = read_config(folder)
    with library_reads("transformers cannot load the model", str(folder)):
        model, loading = loader.from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(str(key) for key in loading[problem]):
            raise UserError(
                f"{problem.replace('_', ' ')}: {', '.join(keys[:3])} ({len(keys)} in all)",
                where=str(folder),
                remedy="weights and config.json do not belong together",
            )
    if not checked:
        check_finite(folder)
        require_sealed(folder, ("*.safetensors", f"*{INDEX}"))
    loaded: PreTrainedModel = model.eval().to(device)
    if hasattr(loaded.config, FOUND):
        require_head(adapter_for(loaded))
    return loaded


@quiet_transformers()
def skeleton(folder: Path) -> PreTrainedModel:
    """A checkpoint's model without weights (on torch's meta device): names and shapes.

    Raises:
        UserError: as `check_checkpoint`.
    """
    return without_weights(folder, check_checkpoint(folder).takes_images)


def _known_family(folder: Path) -> Family | None:
    """The entry of a folder's model type, where there is one.

    It is looked up before transformers reads config.json, so that another package's module has
    registered the classes of its family.
    """
    config = read_model_config(folder) if (folder / "config.json").exists() else {}
    if FOUND not in config and str(config.get("model_type")) not in FAMILIES:
        return None
    return family_of(config)


@quiet_transformers()
def load_processor(
    folder: Path, style: str | None = None, chat_template: str = "auto"
) -> ProcessorMixin | TextProcessor:
    """Load a checkpoint's processor (tokenizer and image processor; PIL, no torchvision).

    Of a text-only model it is its tokenizer in a `TextProcessor`.

    The one place that decides how images are prepared: LLaVA-1.5's are padded and LLaVA-SQA's
    cropped as in training (`llava_images`), and the number of image tokens is made to fit the
    vision tower.

    Args:
        style: `evaluation.style`; decides between the two where config.json has no
            `image_aspect_ratio`. None stands for LLaVA-1.5.
        chat_template: `evaluation.chat_template`; see `data.prompts.choose_template`.

    Raises:
        UserError: the folder holds none, or one that cannot be used; no such chat template.
    """
    folder = Path(folder)
    family = _known_family(folder)
    processor = _prepared(folder, family, style)
    token = "" if family is None else family.image_token
    choose_template(processor, chat_template, token or IMAGE_TOKEN, str(folder))
    return processor


def _prepared(
    folder: Path, family: Family | None, style: str | None
) -> ProcessorMixin | TextProcessor:
    remedy = "the folder needs the tokenizer and processor files of its model"
    if not (folder / "config.json").exists():
        raise UserError("no usable processor: there is no config.json", str(folder), remedy)
    require_readable(folder)
    config = read_config(folder)
    remedy = needs_torchvision(folder) or remedy
    with library_reads("no usable processor", str(folder), remedy, packages=True):
        if family is not None and not family.takes_images:
            return TextProcessor(
                AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
            )
        loader = processor_class(folder) or AutoProcessor
        processor: ProcessorMixin = loader.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    if not hasattr(processor, "image_processor"):
        problem = f"no usable processor: {type(processor).__name__} prepares no images"
        raise UserError(problem, str(folder), remedy)
    # its settings are of any type: transformers takes them as they are
    with library_reads("no usable processor", str(folder), remedy):
        require_sizes(processor, str(folder))
        if config.model_type == "llava":
            use_original_images(processor, pads_images(config, style))
        fit_image_tokens(processor, config, str(folder))
    return processor


def check_tokenizer(processor: ProcessorMixin, model: PreTrainedModel, where: str) -> None:
    """Check that every token the tokenizer can give has an embedding in the model.

    Raises:
        UserError: the tokenizer, or the size of the images, does not fit the model.
    """
    check_image_size(processor, model.config, where)
    largest = max(processor.tokenizer.get_vocab().values())
    rows = model.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise UserError(
            f"the tokenizer does not fit the model: its largest token id is {largest}, "
            f"the model has {rows} embeddings",
            where=where,
            remedy="use the tokenizer that was saved with the model",
        )
    image_token = getattr(model.config, "image_token_id", None)
    if image_token is None:
        return
    known = processor.image_token_ids
    if image_token not in known:
        raise UserError(
            f"the tokenizer does not fit the model: the image token {processor.image_token!r} is "
            f"{', '.join(map(str, known))} for the tokenizer, {image_token} for the model",
            where=where,
            remedy="use the tokenizer that was saved with the model",
        )


@quiet_transformers()
def save_checkpoint(
    model: PreTrainedModel,
    processor: ProcessorMixin | Path,
    folder: Path,
    records: Mapping[str, Any] | None = None,
    save_weights: Callable[[Path], None] | None = None,
    shard: int = SHARD_BYTES,
    sealed: bool = False,
) -> None:
    """Save an ordinary transformers checkpoint, whole or not at all.

    Args:
        processor: it, or the checkpoint whose processor files are copied.
        records: further JSON files by name, e.g. {"pruning.json": {...}}.
        save_weights: writes the safetensors files, where the weights are not those in memory
            (`BlocksOnDisk.save_weights`).
        shard: largest bytes of a file otherwise; larger models are saved in shards.
        sealed: whether the digests of all files are recorded (`files.seal`).
    """
    with replacing(Path(folder)) as temporary:
        temporary.mkdir()
        if save_weights is None:
            model.save_pretrained(temporary, max_shard_size=shard)
        else:
            model.config.save_pretrained(temporary)
            if model.generation_config is not None:
                model.generation_config.save_pretrained(temporary)
            save_weights(temporary)
        if isinstance(processor, Path):
            _copy_processor(processor, temporary)
        else:
            processor.save_pretrained(temporary)
        for name, record in (records or {}).items():
            write_json(temporary / name, record)
        if sealed:
            seal(temporary)


def _copy_processor(source: Path, folder: Path) -> None:
    for pattern in PROCESSOR_FILES:
        for file in sorted(source.glob(pattern)):
            if file.name not in WEIGHTS_AND_RECORDS:
                place = folder / file.relative_to(source)
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, place)
