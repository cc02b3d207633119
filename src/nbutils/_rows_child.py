"""Runs in a process of its own: records in, rows out, beside others of its kind when there are thousands of them.

A list of paths as JSON in; a list as long out, of each its rows or why it has none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nbutils import frames_records

__all__ = ["main"]


def main() -> None:
    asked = json.load(sys.stdin)
    json.dump([frames_records.rows_or_why(Path(path)) for path in asked], sys.stdout, separators=(",", ":"))


if __name__ == "__main__":
    main()
