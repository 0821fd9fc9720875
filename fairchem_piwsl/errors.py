"""The exceptions that users are meant to read."""


class UserError(ValueError):
    """Bad input: the message is one sentence that names the file or key at fault and the remedy.

    The command lines print it without a traceback and end with exit code 2.
    """


def in_words(error: object) -> str:
    """What somebody else's error says, for the middle of a sentence; its type where it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".:")


class DivergedError(UserError, FloatingPointError):
    """Training produced NaN or infinity."""
