"""The errors this library raises; they know nothing of what raises them.

    ValueAdapterError
    ├── ConfigError (ValueError)             a key, type or range in config.json or in an argument
    ├── AlignmentError (ValueError)          vocabularies and the maps between them
    ├── ArtifactError                        the adapter's directory or Hub repository
    │   ├── MissingFileError (FileNotFoundError)
    │   ├── IncompatibleVersionError         written by another format version
    │   └── NotAValueAdapterError            a PEFT adapter, a plain model, a dataset …
    ├── IncompatibleBaseError (ValueError)   adapter and base model do not fit
    ├── AdapterNameError (ValueError)        no such adapter, or one of this name already
    ├── UnsupportedModeError (NotImplementedError)   a mode that cannot work for a sum of models
    ├── CheckpointError                      a training checkpoint that does not fit
    └── MissingExtraError (ImportError)      an optional package that is not installed

Errors of the Hub client and of safetensors pass through unwrapped, except where they would hide the cause.
"""

from __future__ import annotations


class ValueAdapterError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigError(ValueAdapterError, ValueError):
    """A configuration key or argument is unknown, of the wrong type, or out of range."""


class AlignmentError(ValueAdapterError, ValueError):
    """A vocabulary has no byte view, or a map does not fit it."""


class ArtifactError(ValueAdapterError):
    """An adapter's directory is damaged, incomplete, or holds what it must not hold."""


class MissingFileError(ArtifactError, FileNotFoundError):
    """A file that the format requires is not there."""


class IncompatibleVersionError(ArtifactError):
    """The artifact was written by a newer format version than this library reads."""


class NotAValueAdapterError(ArtifactError):
    """The directory or repository exists and is something else."""


class IncompatibleBaseError(ValueAdapterError, ValueError):
    """The adapter's vocabulary and the base model's differ."""


class AdapterNameError(ValueAdapterError, ValueError):
    """An adapter name is unknown, taken, or not usable as a name."""


class UnsupportedModeError(ValueAdapterError, NotImplementedError):
    """A generation or saving mode that cannot work for a sum of models; the message says why."""


class CheckpointError(ValueAdapterError):
    """A training checkpoint does not fit the model that should resume from it."""


class MissingExtraError(ValueAdapterError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""
