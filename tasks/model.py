"""Stage `model`: put the checkpoint that is to be pruned in artifacts/model.

In:  params model; artifacts/questions when the demo model is trained
Out: artifacts/model/ (a transformers checkpoint), with training.json (metrics) and matrices.json
"""

from __future__ import annotations

import shutil
from pathlib import Path

from efficientllava.models.source import hub_snapshot
from tasks.runtime.check import model_folder
from tasks.runtime.stage import ARTIFACTS, WORK, Stage, run_stage

# what is fetched from the hub; never pickles, never code
PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def model(stage: Stage) -> None:
    """Train the demo model, or take the user's checkpoint as it is."""
    source = stage.parameters.model.source
    folder = ARTIFACTS / "model"
    if source == "demo":
        from efficientllava.demo.model import train_demo_model

        train_demo_model(
            folder, stage.parameters.model.demo, ARTIFACTS / "questions", stage.progress
        )
        return
    take(model_folder(stage.parameters) or _fetched(stage), folder)


def _fetched(stage: Stage) -> Path:
    wanted = stage.parameters.model
    return hub_snapshot(wanted.source, wanted.revision, "params.yaml, model.source", WORK / "hub")


def take(given: Path, folder: Path) -> None:
    """Copy a checkpoint's files into `folder` after checking that it can be pruned.

    A copy and no hard link: DVC makes what it caches read-only, and the user's files are not ours.

    Raises:
        UserError: see `checkpoint_files`, `require_unpacked`, `require_room` and `load_model`.
    """
    from efficientllava.files import replacing, write_json
    from efficientllava.models.checkpoint import check_tokenizer, load_model, load_processor
    from efficientllava.models.families import adapter_for
    from efficientllava.models.own_files import checkpoint_files, require_room
    from efficientllava.models.packed import require_unpacked
    from efficientllava.models.source import MATRICES

    files = checkpoint_files(given)
    require_unpacked(given)
    require_room(files, folder)
    loaded = load_model(given)  # every weight is read: truncated, NaN or unknown is told here
    check_tokenizer(load_processor(given), loaded, str(given))
    matrices = adapter_for(loaded).matrices
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, temporary / file.name)
        write_json(
            temporary / "training.json",
            {"prunable_matrices": len(matrices), "prunable_weights": sum(m.size for m in matrices)},
        )
        write_json(temporary / MATRICES, [matrix.name for matrix in matrices])


if __name__ == "__main__":
    run_stage(model)
