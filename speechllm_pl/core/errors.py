"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Bad input: one line that names the thing and the remedy.

    Programs print the message alone, without a traceback, and exit with status 2.
    """
