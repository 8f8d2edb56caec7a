"""What the stream of a response tells while its answer grows."""

from datetime import UTC, datetime

import msgspec

from api.openai.responses.streaming import Teller
from api.streaming.following import Grown
from core.openai.responses.request import parse_response_request
from core.openai.tool_calls import ToolFormat
from core.protocol import TokenLogprob
from db.responses import StoredResponse
from db.tables import JobRow, ResponseRow
from tasks.relay import Piece

BODY = b'{"model": "m", "input": "hi", "tools": [{"type": "function", "name": "look"}]}'


def teller() -> Teller:
    echo = msgspec.json.encode(parse_response_request(BODY).echo).decode()
    row = ResponseRow(id="resp_1", created_at=datetime.now(UTC), echo=echo, has_tools=True)
    made = Teller(StoredResponse(row, JobRow(public_id="job_1"), None, is_running=True), None)
    made.begin()
    return made


def grown(offset: int, text: str, **fields: object) -> Grown:
    values: dict[str, object] = {"num_tokens": 1, "tool_format": ToolFormat.TAGS.value, **fields}
    return Grown([Piece(1, 0, 0, offset, text, **values)])  # type: ignore[arg-type]


def told(made: Teller, grown: Grown) -> str:
    return "".join(event["delta"] for event in made.grow(grown) if event["type"] == "response.output_text.delta")


def test_text_is_told_while_it_comes_also_where_there_are_tools() -> None:
    # Given
    made = teller()
    # When
    first = told(made, grown(0, "Let me "))
    second = told(made, grown(7, "look. <tool"))
    call = told(made, grown(18, '_call>{"name": "look", "arguments": {}}</tool_call>'))
    # Then
    assert (first, second) == ("Let ", "me look."), "in deltas of four"
    assert call == " ", "which nothing follows but the call"


def test_arguments_of_a_call_are_told_while_they_come() -> None:
    # Given
    made = teller()
    made.grow(grown(0, '<tool_call>{"name": "look", "argu'))
    # When
    events = made.grow(grown(33, 'ments": {"at": "the wh'))
    # Then
    deltas = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(delta["delta"] for delta in deltas) == '{"at": "the '
    assert {delta["item_id"] for delta in deltas} == {"fc_1_0"}


def test_deltas_carry_the_log_probabilities_that_were_asked_for() -> None:
    # Given
    made = teller()
    tokens = [TokenLogprob("Let ", b"Let ", -0.5), TokenLogprob("me", b"me", -1.0)]
    # When
    events = made.grow(grown(0, "Let me", logprobs=tokens))
    # Then
    (delta,) = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [(one["token"], one["logprob"]) for one in delta["logprobs"]] == [("Let ", -0.5)]
