"""LLaVA-Bench's judge: it compares the model's answer with GPT-4's.

Source: llava/eval/eval_gpt_review_bench.py at haotian-liu/LLaVA c121f04; the instruction for each
category is read from its llava/eval/table/rule.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from efficientllava.benchmarks.judge.client import Judge
from efficientllava.benchmarks.llava_bench.reading import PREFIX, Scene
from efficientllava.benchmarks.llava_bench.scores import parsed_scores
from efficientllava.errors import UserError
from efficientllava.files import read_json
from efficientllava.progress import Progress

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
_TEMPERATURE, _TOKENS = 0.2, 1024


def read_rules(folder: Path) -> dict[str, dict[str, str]]:
    """The judge's instruction and the assistants' role for each category.

    Raises:
        UserError: rule.json is missing or has no rule for a category.
    """
    path = Path(folder) / "rule.json"
    if not path.is_file():
        raise UserError(
            "no such file: the judge's instructions",
            where=str(path),
            remedy="copy llava/eval/table/rule.json of haotian-liu/LLaVA into the data folder",
        )
    rules = read_json(path)
    if not isinstance(rules, dict) or not all(
        isinstance(rule, dict) and {"role", "prompt"} <= rule.keys() for rule in rules.values()
    ):
        raise UserError("is no mapping from category to role and prompt", where=str(path))
    return rules


def request_text(scene: Scene, answer: str, rules: Mapping[str, Mapping[str, str]]) -> str:
    """The judge's prompt for one answer.

    Raises:
        UserError: there is no rule for the scene's category.
    """
    category = PREFIX + scene.category
    if category not in rules:
        raise UserError(f"has no rule {category}", where="rule.json")
    role, prompt = rules[category]["role"], rules[category]["prompt"]
    return (
        f"[Context]\n{scene.caption}\n\n"
        f"[Question]\n{scene.text}\n\n"
        f"[{role} 1]\n{scene.reference}\n\n[End of {role} 1]\n\n"
        f"[{role} 2]\n{answer}\n\n[End of {role} 2]\n\n"
        f"[System]\n{prompt}\n\n"
    )


def review(
    scenes: Sequence[Scene],
    texts: Mapping[str, str],
    answer_ids: Mapping[str, str],
    judge: Judge,
    rules: Mapping[str, Mapping[str, str]],
    run: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """One evaluation: the lines of the official review file, with the judge's model added.

    Args:
        run: number of the evaluation; each asks the judge anew.
    """
    work = {
        scene.id: partial(
            judge.ask,
            [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": request_text(scene, texts[scene.id], rules)},
            ],
            sample=run,
            temperature=_TEMPERATURE,
            max_tokens=_TOKENS,
        )
        for scene in scenes
    }
    replies = judge.map(work, progress)
    return [
        {
            "id": number,
            "question_id": int(scene.id) if scene.id.isdigit() else scene.id,
            "answer1_id": scene.reference_id,
            "answer2_id": answer_ids.get(scene.id, scene.id),
            "category": PREFIX + scene.category,
            "content": replies[scene.id].content or "",
            "tuple": parsed_scores(replies[scene.id].content or ""),
            "model": replies[scene.id].model,
        }
        for number, scene in enumerate(scenes, start=1)
    ]
