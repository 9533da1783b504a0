"""What all programs do with a command line: they run, and say in one line what is wrong."""

import sys
from collections.abc import Callable
from typing import TypeVar

from .errors import UsageError

Config = TypeVar("Config")


def run(name: str, program: Callable[[Config], None], config: Config, when_interrupted: str = "") -> int:
    """Runs `program(config)`; returns the exit status: 0, 2 after an error of the user or the system, 130 after Ctrl-C."""
    try:
        program(config)
    except (UsageError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted{when_interrupted}", file=sys.stderr)
        return 130
    return 0
