"""What those who wait for an answer feel while the engine is busy. In this process, without a wire.

Long prompt: 16 requests decode, and a prompt of 1,900 tokens arrives. The time between two tokens of a running request
(ITL), before it arrives and from then on until its first token is there; `itl_ratio` is during over before. Once with
one online request among the 16, which is what counts then, and once with bulk requests alone. No prompt comes twice.
Full house: bulk requests fill every slot and as many wait; online requests arrive one after the other. How many steps
begin until its prefill does, and the time to its first token.
Medians of three rounds; the most of all rounds where the name says `max`.
`python -m benchmarks.engine_latency [--quick] [--json] [--rounds N] `; `--quick` is a small model, one short round.
"""

import itertools
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.engine_loop import CLIENT, load, outcomes, submit
from benchmarks.random_model import DEFAULT_SHAPE, SHAPES
from benchmarks.report import Report, open_report, parse_options, percentile
from benchmarks.workload import random_ids
from core.protocol import BULK_PRIORITY, ONLINE_PRIORITY, Delta, Finished
from engine.generation.generator import Generator
from engine.models.loading import LoadOptions

ROUNDS = 3
NUM_RUNNING, RUNNING_PROMPT_TOKENS, RUNNING_ANSWER_TOKENS = 16, 64, 1500
PREFILL_TOKENS = 2048
ONLINE_PROMPT_TOKENS, ONLINE_ANSWER_TOKENS = 64, 4
QUICK_SHAPE = "10m"
PERCENTILES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True, slots=True)
class Size:
    """num_steps_before: that are timed before the long prompt arrives, and that settle the engine before that.

    num_steps_between: of a full house, before the next online request arrives.
    """

    shape: str
    long_prompt_tokens: int
    num_steps_before: int
    num_online: int
    num_slots: int
    num_steps_between: int = 8


FULL, QUICK = Size(DEFAULT_SHAPE, 1900, 40, 10, 64), Size(QUICK_SHAPE, 400, 10, 2, 20)
KINDS = {"online": 0, "bulk": 1, "full house": 2}  # known prefixes of one would spare another its prefill


@dataclass(slots=True)
class Watch:
    """Steps a generator and notes when: each step began, each request got a token, each ended."""

    generator: Generator
    step_begins: list[float] = field(default_factory=list)
    token_times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    finished: dict[str, Finished] = field(default_factory=dict)

    def step(self) -> None:
        self.step_begins.append(time.monotonic())
        replies = self.generator.step()
        now = time.monotonic()
        for reply in replies:
            if isinstance(reply.message, Delta):
                self.token_times[reply.message.id].append(now)
        self.finished.update({done.id: done for done in outcomes(replies)})

    def step_until_token(self, name: str) -> None:
        while name not in self.token_times:
            self.step()

    def cancel(self, names: Iterable[str]) -> None:
        for name in names:
            self.generator.cancel((CLIENT, name))

    def gaps(self, names: list[str], since: float, until: float) -> list[float]:
        """Seconds between two tokens of one request, of those that came in this time."""
        return [
            later - earlier
            for name in names
            for earlier, later in itertools.pairwise(self.token_times[name])
            if since < later <= until
        ]


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """before, during: seconds between tokens. ttft_seconds: of the long prompt."""

    before: list[float]
    during: list[float]
    ttft_seconds: float


def long_prompt(generator: Generator, size: Size, seed: int, *, has_online: bool) -> LongPrompt:
    """The gaps are those of the online request where there is one."""
    watch, chance, vocabulary = Watch(generator), random.Random(seed), SHAPES[size.shape].vocabulary
    names = [f"running {number}" for number in range(NUM_RUNNING)]
    for number, name in enumerate(names):
        is_online = has_online and number == 0
        priority = ONLINE_PRIORITY if is_online else BULK_PRIORITY
        prompt = random_ids(RUNNING_PROMPT_TOKENS, chance, vocabulary)
        submit(generator, name, prompt, RUNNING_ANSWER_TOKENS, priority=priority, stream=True)
    for name in names:
        watch.step_until_token(name)
    for _ in range(size.num_steps_before):  # the engine learns how long its steps take
        watch.step()
    settled = time.monotonic()
    for _ in range(size.num_steps_before):
        watch.step()
    arrived = time.monotonic()
    submit(generator, "long", random_ids(size.long_prompt_tokens, chance, vocabulary), 1, stream=True)
    watch.step_until_token("long")
    watched = names[:1] if has_online else names
    first_token = watch.token_times["long"][0]
    watch.cancel(names)
    return LongPrompt(
        watch.gaps(watched, settled, arrived), watch.gaps(watched, arrived, first_token), first_token - arrived
    )


@dataclass(frozen=True, slots=True)
class Start:
    """num_steps: that began until the prefill of an online request did."""

    num_steps: int
    ttft_seconds: float


def full_house(generator: Generator, size: Size, seed: int) -> list[Start]:
    watch, chance, vocabulary = Watch(generator), random.Random(seed), SHAPES[size.shape].vocabulary
    bulk = [f"bulk {number}" for number in range(2 * size.num_slots)]
    for name in bulk:
        submit(generator, name, random_ids(RUNNING_PROMPT_TOKENS, chance, vocabulary), RUNNING_ANSWER_TOKENS)
    while generator.gauges().num_running < size.num_slots:
        watch.step()
    prompts = [random_ids(ONLINE_PROMPT_TOKENS, chance, vocabulary) for _ in range(size.num_online)]
    starts = [_start_online(watch, size, f"online {number}", prompt) for number, prompt in enumerate(prompts)]
    watch.cancel(bulk)
    return starts


def _start_online(watch: Watch, size: Size, name: str, prompt: list[int]) -> Start:
    for _ in range(size.num_steps_between):  # it comes into a house that is full again
        watch.step()
    arrived = time.monotonic()
    submit(watch.generator, name, prompt, ONLINE_ANSWER_TOKENS, priority=ONLINE_PRIORITY)
    while name not in watch.finished:
        watch.step()
    timing = watch.finished[name].timing
    begins = arrived + timing.queue_seconds
    return Start(sum(arrived < step <= begins for step in watch.step_begins), timing.first_token_seconds)


def report_long_prompts(kind: str, rounds: list[LongPrompt], report: Report) -> None:
    for name, fraction in PERCENTILES.items():
        before = statistics.median(percentile(each.before, fraction) for each in rounds)
        during = statistics.median(percentile(each.during, fraction) for each in rounds)
        report.add(f"itl_seconds_before_{name}.{kind}", before, "s")
        report.add(f"itl_seconds_during_{name}.{kind}", during, "s")
        report.add(f"itl_ratio_{name}.{kind}", during / before, "during/before")
    report.add(f"long_prompt_ttft_seconds.{kind}", statistics.median(each.ttft_seconds for each in rounds), "s")


def report_starts(rounds: list[list[Start]], report: Report) -> None:
    report.add("online_start_steps_max", max(start.num_steps for each in rounds for start in each), "steps")
    ttft = [percentile([start.ttft_seconds for start in each], 0.5) for each in rounds]
    report.add("online_ttft_seconds_p50", statistics.median(ttft), "s")


def _seed(kind: str, number: int) -> int:
    return len(KINDS) * number + KINDS[kind]


def main() -> int:
    options = parse_options(__doc__)
    size = QUICK if options.is_quick else FULL
    num_rounds = options.num_rounds or (1 if options.is_quick else ROUNDS)
    title = f"Latency under load, {size.shape}, {size.num_slots} slots, median of {num_rounds}"
    report = open_report(title, options)
    generator = load(size.shape, LoadOptions("cpu", num_slots=size.num_slots, prefill_tokens=PREFILL_TOKENS))
    long_prompt(generator, QUICK, -1, has_online=True)  # first use of every kernel
    for kind in ("online", "bulk"):
        measured = [
            long_prompt(generator, size, _seed(kind, number), has_online=kind == "online")
            for number in range(num_rounds)
        ]
        report_long_prompts(kind, measured, report)
    report_starts([full_house(generator, size, _seed("full house", number)) for number in range(num_rounds)], report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
