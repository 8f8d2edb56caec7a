import httpx
import pytest

from cli.client import refusal

URL = "http://127.0.0.1:8700"


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (
            httpx.Response(403, json={"error": {"message": "no key", "code": "c"}}),
            "answered 403: no key",
        ),
        (httpx.Response(502, text="Bad Gateway"), "answered 502: Bad Gateway"),
    ],
    ids=["of Millrace", "of a proxy"],
)
def test_a_refusal_is_told_in_the_words_of_whoever_refused(response: httpx.Response, said: str) -> None:
    assert refusal(URL, response).message == f"{URL} {said}"
