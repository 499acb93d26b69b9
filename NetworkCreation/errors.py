"""Errors that a user can put right. A script prints their message and exits."""


class UserError(Exception):
    """Something that the user can put right; the message says what."""


class OptionError(UserError, ValueError):
    """An argument has a value that is not allowed; `name` is the name of the argument."""

    def __init__(self, name, message=None):  # pickle gives the message alone, and restores `name`
        super().__init__(message or name)
        self.name = name


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be read, or contains a different network."""
