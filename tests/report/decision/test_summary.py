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
    assert all(name.endswith(units) for name in pruned.numbers)
    assert set(pruned.metrics) == {f"summary/{name}" for name in pruned.numbers}
    assert set(pruned.tags) == {f"summary/{name}" for name in pruned.words}


def test_numbers_are_those_of_the_row() -> None:
    dense, pruned = measured()
    assert pruned.numbers == {
        "accuracy_percent": 80.0,
        "accuracy_se_percent": 1.0,
        "text_loss_nats": 2.5,
        "answer_loss_nats": 0.7,
        "proxy_loss_nats": 0.1,
        "zeros_percent": 50.0,
        "weights_megabytes": 1.5,
        "parameters_millions": 0.4,
        "cost_wall_seconds": 20.0,
        "cost_cpu_seconds": 35.0,
        "prefill_ms": 3.2,
        "decode_ms": 2.1,
        "prefill_ratio_to_dense": 1.25,
        "decode_ratio_to_dense": 0.95,
    }
    assert dense.numbers["proxy_loss_nats"] == 0.0
    assert dense.numbers["prefill_ratio_to_dense"] == 1.0


def test_a_ratio_has_its_interval_beside_it() -> None:
    dense, pruned = measured()
    assert pruned.words == {
        "runtime": "sparse",
        "prefill_ratio_to_dense": "faster ×1.25 (1.20–1.31)",
        "decode_ratio_to_dense": "no difference measured (0.90–1.02, wide)",
    }
    assert dense.words["prefill_ratio_to_dense"] == "the reference"


def test_what_was_not_measured_has_no_entry() -> None:
    found = summary(Row("a", 0.5), [Row("a", 0.5)], None, None)
    assert found.numbers == {} and found.words == {}
