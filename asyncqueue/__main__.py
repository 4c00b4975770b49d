"""``python -m asyncqueue``: the command line."""

from __future__ import annotations

from asyncqueue.cli.main import main

if __name__ == "__main__":
    main()
