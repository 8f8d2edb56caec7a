"""`python -m tests.chaos --seed 1 --kills 50 --rows 10000`, the long run. Its last line holds the counts; exit status 1
on any difference, or when a kind of victim was never hit while rows were running."""

import argparse
import sys
import time

from tests.chaos.harness import Options, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=None, help="of the choice of victims; the time otherwise")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs; pauses come on top")
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the large job")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else int(time.time())
    result = run(Options(seed, given.kills, given.rows))
    sys.stdout.write("\n".join([*result.table(), *result.remarks(), result.summary()]) + "\n")
    return 0 if result.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
