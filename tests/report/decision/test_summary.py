"""The same ten to fifteen numbers for every model, ratios with their intervals."""

from __future__ import annotations

from efficientllava.report.comparison import Row, Score
from efficientllava.report.decision.summary import Cost, Summary, summary
from efficientllava.report.speedup import Latency

SCORE = Score(0.8, 0.01, 1000)
DENSE = Row("dense", 0.0, 0.0, None, 2.0, None, None, 0.6, SCORE, bytes_on_disk=2_000_000)
PRUNED = Row("a", 0.5, 0.5, 0.1, 2.5, None, None, 0.7, SCORE, bytes_on_disk=1_500_000)


def with_times(row: Row, latency: Latency, parameters: int) -> Row:
    return Row(**{**vars(row), "latencies": {"sparse": latency}, "parameters": parameters})


def measured() -> tuple[Summary, Summary]:
    dense = with_times(DENSE, Latency(4.0, 2.0), 500_000)
    latency = Latency(3.2, 2.1, 1.25, 0.95, (1.2, 1.31), (0.9, 1.02))
    pruned = with_times(PRUNED, latency, 400_000)
    rows, cost = [dense, pruned], Cost(20.0, 35.0)
    return summary(dense, rows, 0.0, cost), summary(pruned, rows, 0.0, cost)


def test_every_model_has_the_same_numbers_with_units() -> None:
    dense, pruned = measured()
    assert dense.numbers.keys() == pruned.numbers.keys()
    assert dense.words.keys() == pruned.words.keys()
    assert 10 <= len(pruned.numbers) <= 15
    units = ("percent", "nats", "megabytes", "millions", "ms", "seconds", "to_dense")
    assert all(name.startswith("summary/") and name.endswith(units) for name in pruned.numbers)


def test_numbers_are_those_of_the_row() -> None:
    dense, pruned = measured()
    assert pruned.numbers == {
        "summary/accuracy_percent": 80.0,
        "summary/accuracy_standard_error_percent": 1.0,
        "summary/text_loss_nats": 2.5,
        "summary/answer_loss_nats": 0.7,
        "summary/proxy_loss_nats": 0.1,
        "summary/zeros_percent": 50.0,
        "summary/weights_megabytes": 1.5,
        "summary/parameters_millions": 0.4,
        "summary/cost_wall_seconds": 20.0,
        "summary/cost_cpu_seconds": 35.0,
        "summary/prefill_ms": 3.2,
        "summary/decode_ms": 2.1,
        "summary/prefill_ratio_to_dense": 1.25,
        "summary/decode_ratio_to_dense": 0.95,
    }
    assert dense.numbers["summary/proxy_loss_nats"] == 0.0
    assert dense.numbers["summary/prefill_ratio_to_dense"] == 1.0


def test_a_ratio_has_its_interval_beside_it() -> None:
    dense, pruned = measured()
    assert pruned.words == {
        "summary/runtime": "sparse",
        "summary/prefill_ratio_to_dense": "faster ×1.25 (1.20–1.31)",
        "summary/decode_ratio_to_dense": "no difference measured (0.90–1.02, wide)",
    }
    assert dense.words["summary/prefill_ratio_to_dense"] == "the reference"


def test_what_was_not_measured_has_no_entry() -> None:
    found = summary(Row("a", 0.5), [Row("a", 0.5)], None, None)
    assert found.numbers == {} and found.words == {}
