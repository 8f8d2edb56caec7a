import re

import pytest

from core import errors
from core.errors import InvalidRequest, MillraceError, Overloaded, Unavailable

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MillraceError)]


def test_the_tree_in_the_docstring_names_every_class() -> None:
    drawn = re.findall(r"[A-Z]\w+", (errors.__doc__ or "").partition("MillraceError")[2])
    assert set(drawn) >= {kind.__name__ for kind in CLASSES if kind is not MillraceError}


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_is_made_of_a_message_that_it_keeps(kind: type[MillraceError]) -> None:
    error = kind("expected this, got that; do so")
    assert str(error) == error.message == "expected this, got that; do so"
    assert error.code == kind.code


def test_only_what_may_pass_by_itself_is_worth_another_try() -> None:
    assert {kind.__name__ for kind in CLASSES if kind.is_retryable} == {
        "Unavailable",
        "EngineLost",
        "Overloaded",
        "RateLimited",
        "ModelUnavailable",
        "Interrupted",
    }


def test_a_more_precise_code_and_the_field_can_be_given() -> None:
    # When
    error = InvalidRequest("…", param="model", code="model_not_found")

    # Then
    assert (error.code, error.param) == ("model_not_found", "model")
    assert InvalidRequest.code == "invalid_request"


def test_what_is_away_or_full_says_when_to_come_back() -> None:
    assert Unavailable("…").retry_after_seconds == 1.0
    assert Overloaded("…", retry_after_seconds=7.5).retry_after_seconds == 7.5
