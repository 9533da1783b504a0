"""Mistakes of a user that a program reports in one line, without a traceback."""


class UsageError(Exception):
    """What is wrong with an option or its file, and what to do."""
