"""What must hold of a job when everything is over: every row has exactly one outcome, the right one, and every count
says the same. Pure; `facts` reads what is compared here."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an output or error file; `answer` None: it is no success."""

    custom_id: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A job when it is over. expected: custom_id -> answer. lines: of both files. outcomes: custom_id -> answer, by
    the database. The counters are those of the job and the sum of its chunks. attempts: of each chunk. row_attempts:
    of each outcome, the attempt that wrote it and the last one of its chunk. num_retries: rows whose failures count."""

    name: str
    state: str
    expected: Mapping[str, str]
    lines: Sequence[Line]
    outcomes: Sequence[Line]
    job_counters: tuple[int, int]
    chunk_counters: tuple[int, int]
    attempts: Sequence[int]
    row_attempts: Sequence[tuple[int, int]] = ()
    num_retries: int = 0


@dataclass
class Differences:
    """lost: without an outcome or without a line. doubled: recorded twice. wrong: another answer, a failure, or one
    that nobody asked for. counts: sentences about counters, states and attempts."""

    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    counts: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.wrong or self.counts)

    def add(self, other: "Differences") -> None:
        self.lost += other.lost
        self.doubled += other.doubled
        self.wrong += other.wrong
        self.counts += other.counts


def differences(job: Ended, max_attempts: int, least_row_attempt: int = 1) -> Differences:
    """max_attempts: how often a chunk can have been begun, given how often something was struck. least_row_attempt: 0
    where rows may be those of a release that did not note its attempts."""
    found = Differences()
    found.add(_compare(job.expected, job.outcomes))
    found.add(_compare(job.expected, job.lines))
    num_rows = len(job.expected)
    if job.state != "completed":
        found.counts.append(f"{job.name}: expected it completed, got it {job.state}")
    for whose, counters in (("the job", job.job_counters), ("its chunks", job.chunk_counters)):
        if counters != (num_rows, 0):
            found.counts.append(
                f"{job.name}: expected {num_rows} completed and 0 failed rows in {whose}, got {counters[0]} and "
                f"{counters[1]}"
            )
    found.counts += [
        f"{job.name}: expected a chunk to be begun 1 to {max_attempts} times, got {attempt}"
        for attempt in job.attempts
        if not 1 <= attempt <= max_attempts
    ]
    found.counts += [
        f"{job.name}: expected a row written by attempt {least_row_attempt} to {of_chunk} of its chunk, got {of_row}"
        for of_row, of_chunk in job.row_attempts
        if not least_row_attempt <= of_row <= of_chunk
    ]
    if job.num_retries:
        found.counts.append(f"{job.name}: expected that no failure was counted against a row, got {job.num_retries}")
    return found


def _compare(expected: Mapping[str, str], found: Iterable[Line]) -> Differences:
    lines = list(found)
    times = Counter(line.custom_id for line in lines)
    return Differences(
        lost=len(expected.keys() - times.keys()),
        doubled=sum(count - 1 for count in times.values()),
        wrong=sum(expected.get(line.custom_id) != line.answer for line in lines),
    )


def run_again(journal: Iterable[str]) -> tuple[int, int]:
    """How many arrivals at an engine were not the first of their row, and how often the same row arrived at most."""
    times = Counter(journal)
    return sum(times.values()) - len(times), max(times.values(), default=0)
