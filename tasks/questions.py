"""Stage `questions`: write the demo question set in ScienceQA's official layout.

In:  params model.demo
Out: artifacts/questions/ (problems.json, pid_splits.json, images.zip)
"""

from __future__ import annotations

from tasks.runtime.stage import ARTIFACTS, Stage, run_stage


def questions(stage: Stage) -> None:
    """Write the question set; the evaluation asks it, whatever the model."""
    from efficientllava.demo.questions.layout import write_questions

    write_questions(ARTIFACTS / "questions", stage.parameters.model.demo, stage.progress)


if __name__ == "__main__":
    run_stage(questions)
