"""Stage `parameters`: check params.yaml and write every parameter, defaults included.

In:  params.yaml
Out: artifacts/parameters.json: all parameters by section. The `params` of the other stages name
     this file, so that a parameter that is left out has its default under DVC too, and a default
     that changes re-runs what depends on it.
"""

from __future__ import annotations

from tasks.runtime.stage import EFFECTIVE, Stage, run_stage


def parameters(stage: Stage) -> None:
    """Write all parameters; that they can be read is the check, and that tasks are known."""
    from efficientllava.files import write_json
    from efficientllava.registry import ENGINES

    evaluation = stage.parameters.evaluation
    ENGINES[evaluation.engine].check_names(evaluation)
    write_json(EFFECTIVE, stage.parameters.model_dump(mode="json"))


if __name__ == "__main__":
    run_stage(parameters)
