"""What benchmarks ask: batch files of texts, and requests of token ids. The same for the same arguments, on every
machine and every round."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.channel import Turn
from benchmarks.random_model import VOCABULARY
from core.openai.completion import CHAT_ENDPOINT

PROMPT_TOKENS = (16, 199)
ANSWER_TOKENS = (8, 128)
MOST_REQUESTS = 64
_LENGTHS_SEED = 472  # 64 answers of these lengths have 2,920 tokens


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt of `prompt_tokens` words that the random model's tokenizer knows, and how long its answer must be."""

    text: str
    prompt_tokens: int
    answer_tokens: int


def questions(count: int, seed: int = 0) -> list[Question]:
    """Prompt lengths are uniform, answer lengths log-uniform; the first ones are the same for every count."""
    chance = random.Random(seed)
    return [_question(chance) for _ in range(count)]


def _question(chance: random.Random) -> Question:
    num_words = chance.randint(*PROMPT_TOKENS)
    answer_tokens = _answer_tokens(chance)
    words = (f"w{chance.randrange(VOCABULARY)}" for _ in range(num_words))
    return Question(" ".join(words), num_words, answer_tokens)


def _answer_tokens(chance: random.Random) -> int:
    shortest, longest = ANSWER_TOKENS
    return round(math.exp(chance.uniform(math.log(shortest), math.log(longest))))


def requests(count: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Turn:
    """At most 64, always of the same lengths; the seed draws what the prompts say, so that no engine that remembers
    one round knows the next."""
    chance = random.Random(_LENGTHS_SEED)
    lengths = [chance.randint(*PROMPT_TOKENS) for _ in range(MOST_REQUESTS)]
    answers = [_answer_tokens(chance) for _ in range(MOST_REQUESTS)]
    ids = random.Random(seed)
    prompts = [random_ids(length, ids, vocabulary) for length in lengths[:count]]
    return Turn(prompts, answers[:count])


def random_ids(count: int, chance: random.Random, vocabulary: int = VOCABULARY) -> list[int]:
    return [chance.randrange(vocabulary) for _ in range(count)]


def question_body(question: Question, model: str) -> dict[str, object]:
    """Greedy, and `ignore_eos`, so that every engine has the same work to do."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": question.answer_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def batch_line(custom_id: str, body: dict[str, object]) -> bytes:
    row = {"custom_id": custom_id, "method": "POST", "url": CHAT_ENDPOINT, "body": body}
    return json.dumps(row).encode() + b"\n"


def batch_file(asked: Sequence[Question], model: str) -> bytes:
    return b"".join(
        batch_line(f"question-{index}", question_body(question, model)) for index, question in enumerate(asked)
    )


def lines_of(count: int, num_bytes: int, model: str) -> bytes:
    """A batch file of `count` lines of `num_bytes` each, the end of the line included. Raises ValueError when a line
    cannot be that short."""
    return b"".join(_padded_line(index, num_bytes, model) for index in range(count))


def _padded_line(index: int, num_bytes: int, model: str) -> bytes:
    custom_id = f"row-{index:06}"
    start = f"Question {index:06}: what does the following say? "
    missing = num_bytes - len(batch_line(custom_id, _asking(model, start)))
    if missing < 0:
        raise ValueError(f"num_bytes: expected at least {num_bytes - missing}, got {num_bytes}")
    return batch_line(custom_id, _asking(model, start + "x" * missing))


def _asking(model: str, text: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}
