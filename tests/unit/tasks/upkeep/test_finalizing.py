import json

from db.results import ResultRow
from tasks.upkeep.finalizing import result_line


def test_a_row_that_was_answered_is_a_line_of_the_output_file_as_openai_writes_it() -> None:
    # When
    line = result_line("batch_ab", ResultRow(3, "mine", 200, '{"choices": []}'))

    # Then
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "id": "batch_req_ab_3",
        "custom_id": "mine",
        "response": {"status_code": 200, "request_id": "batch_req_ab_3", "body": {"choices": []}},
        "error": None,
    }


def test_a_row_that_failed_keeps_its_status_and_the_error_object() -> None:
    parsed = json.loads(result_line("batch_ab", ResultRow(0, "mine", 400, '{"error": {"code": "x"}}')))
    assert parsed["response"]["status_code"] == 400
    assert parsed["response"]["body"] == {"error": {"code": "x"}}
    assert parsed["error"] is None


def test_a_row_that_never_ran_has_no_response() -> None:
    parsed = json.loads(
        result_line("batch_ab", ResultRow(0, "mine", None, '{"code": "batch_expired", "message": "m"}'))
    )
    assert parsed["response"] is None
    assert parsed["error"] == {"code": "batch_expired", "message": "m"}


def test_a_line_is_one_line_whatever_the_custom_id() -> None:
    line = result_line("batch_ab", ResultRow(0, 'a\n"b"\u2028', 200, "{}"))
    assert line.count(b"\n") == 1
    assert json.loads(line)["custom_id"] == 'a\n"b"\u2028'
