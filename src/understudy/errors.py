"""The one exception that means: the input is wrong, not the program."""


class UserError(Exception):
    """Bad input, told in one sentence: the value, what was expected, the remedy.

    The command line prints it without a traceback and exits with status 2.
    """
