"""What can go wrong by the user's hand: one sentence, one exit code, no traceback.

The message of every error says what was found, where (file:line or dotted key), what was expected and what to do.
An impossible state is an assert, never one of these.
"""

from __future__ import annotations


class SlimeRayError(Exception):
    """Base of all errors that the command line prints as one line instead of a traceback."""

    exit_code: int = 2


class ConfigError(SlimeRayError):
    """A recipe, an override or a setting is wrong."""


class DataError(SlimeRayError):
    """A data file cannot be read as what it was given for."""


class ModelError(SlimeRayError):
    """A model, tokenizer or chat template cannot be used."""


class RunError(SlimeRayError):
    """A run folder is not what the command needs."""


class StorageError(SlimeRayError):
    """A file could not be written or read: the disk is full, read-only, or not ours."""


class ClusterError(SlimeRayError):
    """The Ray cluster cannot run what was asked for, or a worker died."""


class EndpointError(SlimeRayError):
    """An endpoint that answers or judges is down, refuses the key, or fails every request."""


class JudgeError(SlimeRayError):
    """A judge is not to be trusted with this: it agrees too little with people."""


class ServingError(SlimeRayError):
    """An endpoint cannot be brought up: no room, a refused checkpoint, no key, a taken port."""


class StudyError(SlimeRayError):
    """A study cannot be begun or gone on with, or none of its trials came to an end."""


class NonFiniteError(SlimeRayError):
    """A loss or gradient was not finite; it was not applied."""

    exit_code = 3


class GuardError(SlimeRayError):
    """The likelihood guard stopped a run."""

    exit_code = 3


class Interrupted(SlimeRayError):  # noqa: N818, it is a wish, not a mistake
    """A run was asked to stop and can be continued."""

    exit_code = 130
