"""The rounds of one shape: every peer is started, warmed up and stopped; then they take turns.

A peer that cannot be set up, or fails on the way, is named on the standard error; the others go on.
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.catalogue import OURS, PEERS, Peer
from benchmarks.peers.channel import Setup, Turn
from benchmarks.peers.environment import PeerFailed, cache_directory, is_prepared, prepare
from benchmarks.peers.figures import ShapeResult
from benchmarks.peers.process import Launch, PeerProcess, closing
from benchmarks.peers.ready import ready_seconds
from benchmarks.random_model import CONTEXT_TOKENS, SHAPES, save_random_model
from benchmarks.workload import requests

NUM_STARTS = 3
NUM_WARMUP_REQUESTS, WARMUP_SEED = 8, 1_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What all peers are asked on one shape. num_slots: of every peer that has them. prefill_tokens: a step, ours."""

    shape: str
    num_requests: int
    num_rounds: int
    num_starts: int
    num_slots: int
    prefill_tokens: int

    def turn(self, number: int) -> Turn:
        return requests(self.num_requests, number, SHAPES[self.shape].vocabulary)

    def warmup(self) -> Turn:
        return requests(min(self.num_requests, NUM_WARMUP_REQUESTS), WARMUP_SEED, SHAPES[self.shape].vocabulary)

    def setup(self, model: str) -> Setup:
        turn = self.turn(0)
        longest = max(len(prompt) + length for prompt, length in zip(turn.prompts, turn.answer_tokens, strict=True))
        kv_tokens = min(self.num_slots, self.num_requests) * longest
        return Setup(model, self.num_slots, self.prefill_tokens, CONTEXT_TOKENS, kv_tokens)


def measure(plan: Plan, peers: tuple[str, ...], root: Path) -> ShapeResult:
    """root: takes the model."""
    setup = plan.setup(str(_saved_model(root / plan.shape, plan.shape)))
    result = ShapeResult(plan.shape)
    if OURS in peers:
        _measure_starts(plan, setup, result)
    processes: dict[str, PeerProcess] = {}
    with closing(processes):
        for name in peers:
            _start(PEERS[name], setup, plan.warmup(), processes, result)
        for number in range(plan.num_rounds):
            _run_round(plan.turn(number), processes, result)
    return result


def _saved_model(directory: Path, shape: str) -> Path:
    """Made in a process of its own: this one stays small and without threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(save_random_model, directory, shape=shape).result()


def _measure_starts(plan: Plan, setup: Setup, result: ShapeResult) -> None:
    try:
        starts = [ready_seconds(setup, _log("engine", plan.shape)) for _ in range(plan.num_starts)]
    except PeerFailed as error:
        _say(f"no engine process became ready: {error}")
        return
    result.ready_seconds[OURS] = starts


def _start(peer: Peer, setup: Setup, warmup: Turn, processes: dict[str, PeerProcess], result: ShapeResult) -> None:
    try:
        process = PeerProcess(_launch(peer, result.shape), replace(setup, mode=peer.mode))
        processes[peer.name] = process
        process.run(warmup)
    except PeerFailed as error:
        _drop(peer.name, error, processes, result)
        return
    if peer.name != OURS:
        result.ready_seconds[peer.name] = [process.ready_seconds]
    _say(f"{peer.name} on {result.shape}: ready after {process.ready_seconds:.1f} s")


def _log(name: str, shape: str) -> Path:
    """Kept beside the environments: whoever wants to know why a peer failed needs it afterwards."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{name}-{shape}.log"


def _launch(peer: Peer, shape: str) -> Launch:
    log = _log(peer.name, shape)
    if peer.requirements is None:
        return Launch(Path(sys.executable), peer.module, peer.environment, log)
    home = cache_directory() / peer.name
    if not is_prepared(home, peer.requirements):
        _say(f"{peer.name}: setting up its environment in {home}; this takes minutes, once")
    return Launch(prepare(home, peer.requirements), peer.module, peer.environment, log)


def _run_round(turn: Turn, processes: dict[str, PeerProcess], result: ShapeResult) -> None:
    for name, process in list(processes.items()):
        try:
            done = process.run(turn)
        except PeerFailed as error:
            _drop(name, error, processes, result)
            continue
        result.rounds.setdefault(name, []).append(done)
        rate, others = done.tokens_per_second, done.other_cores
        _say(f"{name} on {result.shape}: {rate:.1f} tokens/s, other programs took {others:.2f} cores")


def _drop(name: str, error: PeerFailed, processes: dict[str, PeerProcess], result: ShapeResult) -> None:
    _say(f"{name} on {result.shape} is left out: {error}")
    result.forget(name)
    process = processes.pop(name, None)
    if process is not None:
        process.close()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
