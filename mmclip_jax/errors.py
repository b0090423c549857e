"""The errors that end a command with one line instead of a traceback."""


class UserError(ValueError):
    """Bad input or a bad request; the message names what is wrong, where, and the remedy. The CLI exits with 2."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what was saved. The CLI exits with 1."""


class LeakageError(RuntimeError):
    """A test set shares something with a training set; the message says what. The CLI exits with 1."""
