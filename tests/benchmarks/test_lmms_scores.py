"""lmms-eval's results as scores.json has them; the package is not needed."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from efficientllava.benchmarks.engines.lmms_eval.scores import answer_lines, main_part, task_scores

SCORES = [1.0, 0.0, 1.0, 1.0]
ERROR = 0.5 / math.sqrt(4)
"""Standard deviation of SCORES, 0.5, over the root of their number."""


def results(**values: Any) -> dict[str, Any]:
    """Of a task of four questions, as `simple_evaluate` gives them."""
    rows = [
        {"doc_id": n, "acc": score, "f1": {"score": score}, "target": "a", "filtered_resps": ["b"]}
        for n, score in enumerate(SCORES)
    ]
    return {
        "results": {"one": {"alias": "one", **values}},
        "samples": {"one": rows},
        "higher_is_better": {"one": {"acc": True, "loss": False}},
    }


def test_error_is_lmms_eval_s_where_it_has_one() -> None:
    found = task_scores(results(**{"acc,none": np.float64(0.75), "acc_stderr,none": 0.2}))
    expected = {"value": 0.75, "standard_error": 0.2, "n": 4, "better": "higher"}
    assert found == {"one": {"acc": expected}}
    assert type(found["one"]["acc"]["value"]) is float
    assert main_part(found, "one") == ({"accuracy": 0.75, "standard_error": 0.2, "n": 4}, None)


@pytest.mark.parametrize("metric", ["acc", "f1"])
def test_error_of_a_mean_of_questions_is_that_of_the_mean(metric: str) -> None:
    """Also where a question's score stands in a record, as POPE's."""
    found = task_scores(results(**{f"{metric},none": 0.75, f"{metric}_stderr,none": "N/A"}))
    assert found["one"][metric]["standard_error"] == pytest.approx(ERROR)


def test_a_value_that_is_no_mean_has_no_error_and_is_no_accuracy() -> None:
    found = task_scores(results(**{"f1,none": 0.9, "f1_stderr_clt,none": 0.1}))
    assert found["one"]["f1"]["standard_error"] is None
    part, note = main_part(found, "one")
    assert part == {"accuracy": None, "standard_error": None, "n": 0} and "f1" in str(note)
    found = task_scores(results(**{"sum,none": 1710.5, "sum_stderr,none": 3.0}))
    assert main_part(found, "one")[0]["accuracy"] is None


def test_filters_groups_and_what_is_no_number() -> None:
    given = results(**{"acc,strict": 0.5, "acc,none": None, "file,none": "a.json", "x,none": {}})
    given["results"]["all"] = {"acc,none": 0.5, "acc_stderr,none": 0.1}
    given["group_subtasks"] = {"all": ["one"]}
    found = task_scores(given)
    assert list(found["one"]) == ["acc.strict"] and found["all"]["acc"]["n"] == 4
    assert main_part(found, "two") == (
        {"accuracy": None, "standard_error": None, "n": 0},
        "two gives no number",
    )


def test_answers_are_lines_of_plain_values() -> None:
    rows = [{"doc_id": 3, "target": {1, 2}, "filtered_resps": [[(0.5, True), (0.1, False)]]}]
    lines = json.loads(json.dumps(answer_lines("one", rows)))
    assert lines == [{"id": "one/3", "text": [[0.5, True], [0.1, False]], "target": "{1, 2}"}]
