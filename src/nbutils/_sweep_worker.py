"""Runs in a process of its own, beside others of its kind: takes cells of a sweep one after the other, until nobody hands it any more.

A line of JSON in, with the cell and its folder; lines of JSON out, what the notebook tells and at last how it ended.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from nbutils import sweep

__all__ = ["main"]


def main() -> None:
    # What libraries print must not come between the lines of JSON.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(**event: Any) -> None:
        answers.write(json.dumps(event) + "\n")
        answers.flush()

    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while True:
        request = json.loads(asked.get())
        try:
            sweep.execute(sweep.Cell(**request["cell"]), Path(request["folder"]), lambda line: say(told=line))
        except OSError as error:  # not even the error could be written down
            say(failed=error.strerror or str(error))
        else:
            say(done=True)


def _listen(asked: queue.SimpleQueue[str]) -> None:
    """Hand on what is asked. When the parent goes, the kernel goes too: a measurement that nobody waits for would disturb the next."""
    for line in sys.stdin:
        asked.put(line)
    sweep.end_tree(os.getpid(), itself=False)
    os._exit(0)


if __name__ == "__main__":
    main()
