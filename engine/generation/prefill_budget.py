"""How many prompt tokens the next step may process beside those who decode. Knows no torch, and no clock.

A step is as long for those who decode in it as it is for the prompts in it. What a prompt token and a step of decoding
alone take is measured by the engine itself, step by step, and follows the model, the device and the lengths.

A paced step takes prompts along that make it `PACED_GROWTH` times as long as decoding alone. Every step is paced in
which somebody decodes who waits for the answer. Where only bulk work decodes, steps are paced as long as few places
wait for their prompts beside those that decode (`is_bulk_paced`): no step holds anybody up then, least of all an
online request that arrives in the middle of it, and at most that share of the places stands idle. Where more wait, or
somebody waits for an answer that is yet to begin, that is worth more than an even pace that nobody watches: steps may
take `BULK_STEP_SECONDS`, or `BULK_GROWTH` times decoding alone, whichever is more. Where nobody decodes, a step may
take `ALONE_STEP_SECONDS`, for a slow machine must not look stuck. Until something was measured, pieces are small.
"""

PACED_GROWTH = 1.7  # promised is 2; steps vary
PACED_SHARE = 8  # that many must decode for each that waits for its prompt
BULK_GROWTH = 4.0
BULK_STEP_SECONDS = 1.0
ALONE_STEP_SECONDS = 5.0
UNMEASURED_TOKENS = 256
LEAST_TOKENS = 8

_WEIGHT = 0.3  # of the newest measurement against all before it
_OUTLIER = 4.0  # what is this many times the estimate counts as so much: the machine was busy elsewhere


def is_bulk_paced(num_decode: int, num_pending: int, *, is_awaited: bool) -> bool:
    """Whether a step is paced in which nobody decodes who waits for the answer.

    num_pending: sequences that have a place, or could have one as far as places go, and wait for their prompts.
    is_awaited: whether somebody waits for the answer of one of these.
    """
    return not is_awaited and num_pending * PACED_SHARE <= num_decode


class PrefillBudget:
    """most: tokens, the configured bound. least: prompts always move on."""

    def __init__(self, most: int, least: int = LEAST_TOKENS) -> None:
        self.most = most
        self._least = min(least, most)
        self._decode_seconds: dict[int, float] = {}  # by the binary order of magnitude of the number of rows
        self._prefill_seconds = 0.0  # beyond what decoding took, fading
        self._prefill_tokens = 0.0  # in that time

    def observe(self, num_decode: int, num_prefill_tokens: int, seconds: float) -> None:
        """A step has ended that decoded a token for `num_decode` sequences and processed so many prompt tokens."""
        if num_decode == num_prefill_tokens == 0:
            return
        if num_prefill_tokens == 0:
            size = num_decode.bit_length()
            self._decode_seconds[size] = _follow(self._decode_seconds.get(size, 0.0), seconds)
        elif num_decode == 0 or self._decode_seconds:
            more = max(0.0, seconds - self._decode_estimate(num_decode))
            if expected := self._token_seconds * num_prefill_tokens:
                more = min(more, _OUTLIER * expected)
            self._prefill_seconds = (1 - _WEIGHT) * self._prefill_seconds + more
            self._prefill_tokens = (1 - _WEIGHT) * self._prefill_tokens + num_prefill_tokens

    def num_tokens(self, num_decode: int, *, is_paced: bool) -> int:
        decode = self._decode_estimate(num_decode)
        if not self._token_seconds:
            return min(self.most, UNMEASURED_TOKENS)
        if num_decode == 0 or not decode:
            return max(self._least, min(self.most, int(ALONE_STEP_SECONDS / self._token_seconds)))
        allowed = PACED_GROWTH * decode if is_paced else max(BULK_GROWTH * decode, BULK_STEP_SECONDS)
        return max(self._least, min(self.most, int((allowed - decode) / self._token_seconds)))

    @property
    def _token_seconds(self) -> float:
        """What a prompt token takes; 0 is unknown. Large pieces tell more than small ones."""
        return self._prefill_seconds / self._prefill_tokens if self._prefill_tokens else 0.0

    def _decode_estimate(self, num_decode: int) -> float:
        """Seconds of a step that decodes alone; 0 where none was seen yet. For nobody, what the smallest one takes."""
        if not self._decode_seconds:
            return 0.0
        size = num_decode.bit_length()
        return self._decode_seconds[min(self._decode_seconds, key=lambda known: abs(known - size))]


def _follow(estimate: float, measured: float) -> float:
    if estimate == 0.0:
        return measured
    return estimate + _WEIGHT * (min(measured, _OUTLIER * estimate) - estimate)
