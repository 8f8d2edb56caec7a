"""What is read of guidellm's report, and that nothing is read of a run in which a request failed."""

import msgspec
import pytest

from benchmarks.load.guidellm import Document, figures
from benchmarks.peers.environment import PeerFailed


def document(successful: int = 40, errored: int = 0, incomplete: int = 0) -> Document:
    """As guidellm writes it, with more than is asked for."""
    spread = {"mean": 210.5, "median": 1.0, "percentiles": {"p50": 0.004, "p99": 0.012, "p999": 0.5}}
    by_status = {"successful": spread, "errored": None}
    totals = {"successful": successful, "errored": errored, "incomplete": incomplete, "total": 40}
    names = ("requests_per_second", "request_latency", "time_to_first_token_ms", "inter_token_latency_ms")
    metrics = {"request_totals": totals, **dict.fromkeys(names, by_status)}
    return msgspec.convert({"metadata": {}, "benchmarks": [{"config": {}, "metrics": metrics}]}, Document)


def test_rates_and_milliseconds_are_taken_from_the_requests_that_succeeded() -> None:
    assert figures(document(), 40) == [
        ("answers_per_second", 210.5, "answers/s"),
        ("latency_p50", 4.0, "ms"),
        ("latency_p99", 12.0, "ms"),
        ("ttft_p50", 0.004, "ms"),
        ("ttft_p99", 0.012, "ms"),
    ]


@pytest.mark.parametrize("totals", [{"errored": 1}, {"incomplete": 2}, {"successful": 39}])
def test_a_run_in_which_a_request_failed_has_no_figures(totals: dict[str, int]) -> None:
    with pytest.raises(PeerFailed, match="expected 40 requests to succeed"):
        figures(document(**totals), 40)
