"""Runs a batch through the official `openai` client: upload, create, wait, print.

    millrace up                                   # in another terminal
    python examples/openai_client.py              # the questions beside this file
    python examples/openai_client.py my.jsonl http://127.0.0.1:8700/v1

Nothing here is special to Millrace but address and key: the same program runs against OpenAI. Your own machine needs no
key; elsewhere put one into MILLRACE_API_KEY.
"""

import json
import os
import sys
import time
from pathlib import Path

from openai import OpenAI
from openai.types import Batch

QUESTIONS = Path(__file__).with_name("questions.jsonl")
BASE_URL = "http://127.0.0.1:8700/v1"
ENDED = ("completed", "failed", "expired", "cancelled")
POLL_SECONDS = 1.0


def main(source: Path = QUESTIONS, base_url: str = BASE_URL) -> int:
    client = OpenAI(base_url=base_url, api_key=os.environ.get("MILLRACE_API_KEY", "unused"))
    with source.open("rb") as content:
        file = client.files.create(file=content, purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"name": source.name}
    )
    batch = wait(client, batch)
    print_refusal(batch)
    print_lines(client, batch.output_file_id)
    print_lines(client, batch.error_file_id)
    return 0 if batch.status == "completed" else 1


def wait(client: OpenAI, batch: Batch) -> Batch:
    """This program may be stopped and the batch goes on: `client.batches.retrieve` finds it again by its id."""
    while batch.status not in ENDED:
        counts = batch.request_counts
        if counts is not None:
            print(f"{batch.id} {batch.status}: {counts.completed + counts.failed} of {counts.total}", file=sys.stderr)
        time.sleep(POLL_SECONDS)
        batch = client.batches.retrieve(batch.id)
    return batch


def print_refusal(batch: Batch) -> None:
    """A file with a bad line is refused whole; each error names its line."""
    for error in (batch.errors and batch.errors.data) or ():
        print(f"line {error.line}: {error.message}", file=sys.stderr)


def print_lines(client: OpenAI, file_id: str | None) -> None:
    """Answers are in the output file, requests that failed in the error file; there is no file without a line."""
    if file_id is None:
        return
    for line in client.files.content(file_id).text.splitlines():
        row = json.loads(line)
        body = (row["response"] or {}).get("body", {})
        text = body["choices"][0]["message"]["content"] if "choices" in body else row["error"] or body["error"]
        print(f"{row['custom_id']}: {text}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(Path(arguments[0]) if arguments else QUESTIONS, *arguments[1:2]))
