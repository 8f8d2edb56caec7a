"""Deltas as pieces: each says where in its choice it belongs."""

from core.protocol import Delta
from tasks.relay import End, Piece
from workers.chunks.deltas import Deltas


class Told:
    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.interrupted: list[tuple[str, int]] = []

    def announce(self, job_public_id: str, end: End | None = None, *, is_streamed: bool = True) -> None:
        raise AssertionError

    def publish(self, job_public_id: str, piece: Piece) -> None:
        self.pieces.append(piece)

    def interrupt(self, job_public_id: str, attempt: int) -> None:
        self.interrupted.append((job_public_id, attempt))

    def close(self) -> None:
        raise AssertionError


def test_pieces_of_every_choice_say_what_came_before_them() -> None:
    # Given
    told = Told()
    deltas = Deltas(told, "job", 3)
    # When
    for request, index, text in ((0, 0, "ab"), (0, 1, "x"), (0, 0, "cde"), (1, 0, "y"), (0, 0, "f")):
        deltas.take(request, Delta("id", text, 1, index, prompt_tokens=7))
    # Then
    places = [(piece.request, piece.choice, piece.offset, piece.text, piece.num_tokens) for piece in told.pieces]
    assert places == [(0, 0, 0, "ab", 1), (0, 1, 0, "x", 1), (0, 0, 2, "cde", 2), (1, 0, 0, "y", 1), (0, 0, 5, "f", 3)]
    assert {(piece.attempt, piece.prompt_tokens) for piece in told.pieces} == {(3, 7)}


def test_an_interruption_is_told_only_where_something_was() -> None:
    told = Told()
    silent, spoken = Deltas(told, "silent", 1), Deltas(told, "spoken", 2)
    spoken.take(0, Delta("id", "a", 1))
    silent.interrupt()
    spoken.interrupt()
    assert told.interrupted == [("spoken", 2)]
