"""Stage `model`: put the checkpoint that is to be pruned in artifacts/model.

In:  params model; artifacts/questions when the demo model is trained; the package index for smollm2
Out: artifacts/model/ (a transformers checkpoint), with training.json (metrics) and matrices.json
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from efficientllava.models.source import hub_snapshot
from tasks.runtime.check import model_folder
from tasks.runtime.stage import ARTIFACTS, WORK, Stage, run_stage


def model(stage: Stage) -> None:
    """Train the demo model, build that around SmolLM2, or take the user's checkpoint as it is."""
    source = stage.parameters.model.source
    folder = ARTIFACTS / "model"
    if source == "smollm2":
        from efficientllava.demo.pretrained.build import build_pretrained

        build_pretrained(folder, WORK, stage.progress)
        return
    if source == "demo":
        from efficientllava.demo.model import train_demo_model

        train_demo_model(
            folder, stage.parameters.model.demo, ARTIFACTS / "questions", stage.progress
        )
        return
    given = model_folder(stage.parameters) or _fetched(stage)
    if stage.parameters.model.family == "auto":
        take(given, folder)
        return
    from efficientllava.models.generic import with_found_family

    with TemporaryDirectory(dir=WORK) as temporary:
        take(with_found_family(given, Path(temporary) / "model"), folder)


def _fetched(stage: Stage) -> Path:
    settings = stage.parameters.model
    return hub_snapshot(
        settings.source, settings.revision, "params.yaml, model.source", WORK / "hub"
    )


def take(given: Path, folder: Path) -> None:
    """Copy a checkpoint's files into `folder` after checking that it can be pruned.

    A copy and no hard link: DVC makes what it caches read-only, and the user's files are not ours.

    Raises:
        UserError: see `require_plain_checkpoint`, `checkpoint_files`, `require_unpacked`,
            `require_room`, `load_model` and `check_images`.
    """
    from efficientllava.files import replacing, seal, write_json
    from efficientllava.models.checkpoint import check_tokenizer, load_model, load_processor
    from efficientllava.models.families import adapter_for
    from efficientllava.models.folder_kind import require_plain_checkpoint
    from efficientllava.models.own_files import checkpoint_files, require_room
    from efficientllava.models.packed import require_unpacked
    from efficientllava.models.processors.one_image import check_images
    from efficientllava.models.source import MATRICES

    require_plain_checkpoint(given)
    files = checkpoint_files(given)
    require_unpacked(given)
    require_room(files, folder)
    loaded = load_model(given)  # every weight is read: truncated, NaN or unknown is told here
    processor = load_processor(given)
    check_tokenizer(processor, loaded, str(given))
    check_images(processor, loaded, str(given))
    matrices = adapter_for(loaded).matrices
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        for file in files:
            place = temporary / file.relative_to(given)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)
        write_json(
            temporary / "training.json",
            {"prunable_matrices": len(matrices), "prunable_weights": sum(m.size for m in matrices)},
        )
        write_json(temporary / MATRICES, [matrix.name for matrix in matrices])
        seal(temporary)


if __name__ == "__main__":
    run_stage(model)
