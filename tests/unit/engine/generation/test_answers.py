"""What clients get of answers: text, deltas, log-probabilities and ends, from real models over real tokenizers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InvalidRequest
from core.prompts import PromptCodec
from core.protocol import Delta, Failed, Finished, Generate, Sampling, TokenLogprob
from engine.generation.answers import Answers, ModelFacts
from engine.generation.sequence import Sequence
from engine.runtime import Arrival
from engine.sampling.logprobs import Logprobs
from tests.engine_harness import CLIENT, Harness, random_prompt
from tests.engine_models import END_ID, VOCABULARY, number_tokenizer, tiny_model, tiny_tokenizer
from tests.unit.core.test_prompts import sentencepiece_like_tokenizer

BYTES = PromptCodec(tiny_tokenizer(), None)
PIECES = PromptCodec(sentencepiece_like_tokenizer(), None)


class Dialogue:
    """Answers fed token by token, as the loop feeds them."""

    def __init__(
        self, codec: PromptCodec, sampling: Sampling, *, num_answers: int = 1, is_streamed: bool = True
    ) -> None:
        facts = ModelFacts("tiny", 10_000, codec.vocab_size, frozenset({END_ID}), 0)
        self.codec = codec
        self.answers = Answers(codec, facts, lambda: 0.0)
        request = Generate("x", "tiny", sampling, token_ids=[5], stream=is_streamed, num_answers=num_answers)
        self.sequences = self.answers.open(Arrival(CLIENT, request, 0.0))
        self.deltas: list[Delta] = []
        self.finished: Finished | None = None

    def push(self, token_ids: list[int], index: int = 0) -> "Dialogue":
        for token_id in token_ids:
            sequence: Sequence = self.sequences[index]
            if self.answers.is_finished(sequence):
                break
            for reply in self.answers.take(sequence, token_id, Logprobs(-float(sequence.num_answer_tokens))):
                assert not isinstance(reply.message, Failed)
                if isinstance(reply.message, Delta):
                    self.deltas.append(reply.message)
                else:
                    assert isinstance(reply.message, Finished)
                    self.finished = reply.message
        return self

    def told(self, index: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas if delta.index == index)

    def told_logprobs(self, index: int = 0) -> list[TokenLogprob]:
        return [one for delta in self.deltas if delta.index == index for one in delta.logprobs or []]


def ask(harness: Harness, name: str, sampling: Sampling, **more: Any) -> Finished | Failed:
    request = Generate(name, "tiny", sampling, token_ids=random_prompt(6), **more)
    harness.generator.submit(Arrival(CLIENT, request, 0.0))
    harness.run()
    outcome = harness.outcomes[name]
    assert isinstance(outcome, Finished | Failed)
    return outcome


tokens = st.lists(st.integers(2, 259), min_size=1, max_size=25)
words = st.lists(st.sampled_from(["a", "ab", "bab", "é", "€", "\ufffd", " a", "b "]), max_size=3).map(tuple)


@settings(deadline=None)
@given(st.sampled_from([BYTES, PIECES]), st.data(), words, st.integers(0, 12), st.integers(1, 3))
def test_deltas_are_whole_characters_that_make_up_the_text_and_leak_no_stop_string(
    codec: PromptCodec, data: st.DataObject, stop: tuple[str, ...], min_tokens: int, num_answers: int
) -> None:
    # Given answers of random tokens, most of them parts of characters, and stop strings
    interesting = [*codec.encode_fragment("ab bab é€ a"), *codec.encode_fragment("€"), *range(2, codec.vocab_size)]
    answer = st.lists(st.sampled_from(interesting), min_size=12, max_size=25)
    given_tokens = [data.draw(answer) for _ in range(num_answers)]
    # When they come in turns
    sampling = Sampling(max_tokens=25, stop=stop, min_tokens=min_tokens, num_logprobs=0, ignore_eos=True)
    dialogue = Dialogue(codec, sampling, num_answers=num_answers)
    for position in range(25):
        for index, token_ids in enumerate(given_tokens):
            dialogue.push((token_ids + token_ids[:1] * 25)[position : position + 1], index)
    # Then the deltas of each are its text, without its stop strings but for those that came too early to count
    assert dialogue.finished is not None
    for index, choice in enumerate(dialogue.finished.choices):
        assert dialogue.told(index) == choice.text
        everything = codec.decode((given_tokens[index] + given_tokens[index][:1] * 25)[:25])
        assert everything.startswith(choice.text)
        assert choice.finish_reason == "stop" or choice.text == everything
        if min_tokens == 0:
            assert not any(word in choice.text for word in stop)
        # And so do their log-probabilities, one for each token
        assert dialogue.told_logprobs(index) == choice.logprobs


@settings(deadline=None)
@given(st.sampled_from([BYTES, PIECES]), st.text("abé€ ", min_size=1, max_size=12), words)
def test_tokens_of_the_text_have_the_bytes_of_the_text(codec: PromptCodec, text: str, stop: tuple[str, ...]) -> None:
    # Given an answer that is valid text
    dialogue = Dialogue(codec, Sampling(stop=stop, num_logprobs=0))
    dialogue.push([*codec.encode_fragment(text), END_ID])
    # Then its tokens' bytes are those of the text, up to the end of the last one; a first space may be taken away
    assert dialogue.finished is not None
    entries = dialogue.finished.logprobs or []
    written = b"".join(entry.bytes for entry in entries)
    own = dialogue.finished.text.encode()
    assert written.removeprefix(b"" if codec is BYTES else b" ").startswith(own)
    last = entries[-1].bytes if entries else b""
    assert len(written) - len(own) <= len(last)


def test_a_stop_string_cuts_the_tokens_that_begin_behind_it() -> None:
    # Given an answer whose third token completes a stop string that begins in its second
    codec = PromptCodec(number_tokenizer(), None)
    dialogue = Dialogue(codec, Sampling(stop=("2 3",), num_logprobs=0)).push([7, 42, 38])
    # Then the second token, some of which shows, is listed and the third is not
    assert dialogue.finished is not None
    assert (dialogue.finished.text, dialogue.finished.finish_reason) == ("7 4", "stop")
    assert [entry.text for entry in dialogue.finished.logprobs or []] == [" 7", " 42"]
    assert dialogue.told_logprobs() == dialogue.finished.logprobs


def test_half_characters_have_exact_bytes() -> None:
    # Given a character of three tokens
    euro = BYTES.encode_fragment("€")
    dialogue = Dialogue(BYTES, Sampling(num_logprobs=0)).push([*euro, END_ID])
    # Then it comes in one delta with all three of them
    assert [delta.text for delta in dialogue.deltas] == ["€"]
    assert [(one.bytes, one.logprob) for one in dialogue.told_logprobs()] == [
        (b"\xe2", 0),
        (b"\x82", -1),
        (b"\xac", -2),
    ]
    assert [one.text for one in dialogue.told_logprobs()] == ["\ufffd"] * 3


def test_a_special_token_among_the_rivals_has_the_bytes_of_its_name() -> None:
    dialogue = Dialogue(BYTES, Sampling(num_logprobs=2))
    [letter] = BYTES.encode_fragment("x")
    replies = dialogue.answers.take(dialogue.sequences[0], letter, Logprobs(-0.5, ((letter, -0.5), (END_ID, -1.0))))
    delta = replies[0].message
    assert isinstance(delta, Delta)
    assert [(one.text, one.bytes, one.logprob) for one in (delta.logprobs or [])[0].top] == [
        ("x", b"x", -0.5),
        ("<end>", b"<end>", -1.0),
    ]


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_stop_token_ends_the_answer_and_is_no_part_of_its_text(is_streamed: bool) -> None:
    letters = BYTES.encode_fragment("xyz")
    sampling = Sampling(stop_token_ids=(letters[2],), num_logprobs=0 if is_streamed else None)
    dialogue = Dialogue(BYTES, sampling, is_streamed=is_streamed).push(letters)
    assert dialogue.finished is not None
    assert (dialogue.finished.text, dialogue.finished.finish_reason) == ("xy", "stop")
    assert dialogue.finished.usage.completion_tokens == 3
    if is_streamed:
        assert len(dialogue.told_logprobs()) == 2


def test_a_stop_string_counts_only_when_it_ends_behind_min_tokens() -> None:
    letters = BYTES.encode_fragment("xyxyzxy")
    dialogue = Dialogue(BYTES, Sampling(stop=("xy", "yz"), min_tokens=5)).push(letters)
    assert dialogue.finished is not None
    assert dialogue.finished.text == "xyx"  # "yz" is complete with the fifth token


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (Sampling(logit_bias={VOCABULARY: 1.0}), "logit_bias"),
        (Sampling(stop_token_ids=(VOCABULARY,)), "stop_token_ids"),
        (Sampling(min_p=2), "min_p"),
    ],
)
def test_impossible_parameters_are_refused_before_anything_runs(sampling: Sampling, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Dialogue(BYTES, sampling)
    assert caught.value.param == param


def test_too_many_answers_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match=r"^n: expected 1 to 128, got 129"):
        Dialogue(BYTES, Sampling(), num_answers=129)


def test_several_answers_are_those_of_following_seeds() -> None:
    # Given what single requests answer to three seeds
    harness = Harness(tiny_model("llama"), num_slots=2)
    drawn = Sampling(max_tokens=20, ignore_eos=True, num_logprobs=1)
    singles = []
    for seed in (40, 41, 42):
        single = ask(harness, str(seed), Sampling(seed=seed, max_tokens=20, ignore_eos=True, num_logprobs=1))
        assert isinstance(single, Finished)
        singles.append(single)
    # When one request asks for three answers
    several = ask(harness, "several", Sampling(**{**fields(drawn), "seed": 40}), num_answers=3)
    # Then they are the same, and the prompt is counted once
    assert isinstance(several, Finished)
    assert [choice.text for choice in several.choices] == [single.text for single in singles]
    assert [len(choice.logprobs or ()) for choice in several.choices] == [20] * 3
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (6, 60)


def fields(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in sampling.__struct_fields__}


@pytest.mark.parametrize("min_tokens", [0, 12, 30])
def test_no_end_comes_before_min_tokens(min_tokens: int) -> None:
    # Given a model that would rather end than go on
    harness = Harness(tiny_model("llama"))
    eager = Sampling(temperature=0, max_tokens=40, min_tokens=min_tokens, logit_bias={END_ID: 100, 9: 90})
    # When it may not end yet
    finished = ask(harness, "eager", Sampling(**{**fields(eager), "stop_token_ids": (9,)}))
    # Then it ends as soon as it may
    assert isinstance(finished, Finished)
    assert finished.usage.completion_tokens == min_tokens + 1
    assert finished.finish_reason == "stop"


def test_penalties_survive_that_a_sequence_gives_way() -> None:
    # Given what a penalised request answers alone
    sampling = Sampling(temperature=0, max_tokens=40, ignore_eos=True, repetition_penalty=1.3, frequency_penalty=0.5)
    alone = ask(Harness(tiny_model("llama"), num_slots=1), "one", sampling)
    # When it gives way to an urgent one in mid-answer
    crowd = Harness(tiny_model("llama"), num_slots=1)
    crowd.submit("one", random_prompt(6), sampling)
    for _ in range(15):
        crowd.step()
    crowd.submit("urgent", random_prompt(9), Sampling(temperature=0, max_tokens=3), priority=10)
    crowd.run()
    # Then its answer is the same
    assert isinstance(alone, Finished)
    assert crowd.outcomes["one"].text == alone.text  # type: ignore[union-attr]
    # And no token comes twice as often as it would without penalties
    assert len(set(alone.text.split())) > 30


def test_log_probabilities_are_those_of_the_model() -> None:
    # Given a greedy request with rivals
    finished = ask(Harness(tiny_model("llama")), "one", Sampling(temperature=0, max_tokens=10, num_logprobs=3))
    # Then each token is the most probable one, and the rest fall
    assert isinstance(finished, Finished)
    assert finished.logprobs is not None
    for entry in finished.logprobs:
        assert (entry.top[0].text, entry.top[0].logprob) == (entry.text, entry.logprob)
        assert 0 > entry.top[0].logprob >= entry.top[1].logprob >= entry.top[2].logprob


def test_answers_load_neither_torch_nor_the_grammar_library() -> None:
    # When a fresh interpreter imports what turns tokens into answers
    code = (
        "import sys, engine.generation.answers; print(sorted({'torch', 'transformers', 'llguidance'} & {*sys.modules}))"
    )
    root = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    # Then what is heavy is not among what was loaded
    assert done.stdout.strip() == "[]"
