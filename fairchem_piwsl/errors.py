"""The exceptions that users are meant to read."""


class UserError(ValueError):
    """Bad input: the message is one sentence that names the file or key at fault and the remedy.

    The command lines print it without a traceback and end with exit code 2.
    """


class DivergedError(UserError, FloatingPointError):
    """Training produced NaN or infinity."""
