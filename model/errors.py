"""Every error that a user can cause.

An error says three things: what happened (with the value), what was expected, and what to do about it. The command line turns it
into an `Error:` and a `Hint:` line and leaves with `exit_code`; nothing else in the code prints errors.
"""

import importlib.util


class AlambicError(Exception):
    """Something that the user can mend: `message` tells what happened, `hint` what to do."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class DataError(AlambicError):
    """The data given cannot be used: a missing file or column, an empty file, undecodable bytes, labels that do not fit."""


class ConfigError(AlambicError):
    """Options, a recipe or an encoder configuration that cannot be."""


class ArtifactError(AlambicError):
    """A model on disk that is missing, damaged, of the wrong kind, in use, or made otherwise."""


class EnvironmentProblem(AlambicError):
    """The machine or the environment lacks something: a package, a provider, room on the disk."""


class GateError(AlambicError):
    """A check said no (parity, audit, accuracy, regression): nothing was written."""

    exit_code = 3


def require(extra: str, *modules: str) -> None:
    """Raise EnvironmentProblem naming the install command if one of `modules` (import names) is not installed.

    Only looks the modules up, does not import them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"This needs {', '.join(missing)}, which is not installed.", f"Install it with: pip install 'alambic[{extra}]'"
        )
