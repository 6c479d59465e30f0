"""The whole error tree, by what the caller can do about it.

SaccadeError
|-- InputError (also ValueError)      fix the call: an option, a path, an array
|   |-- PictureError                  one picture cannot be used; the others are unaffected
|   `-- AnnotationError               the annotation file cannot be used as it is
|-- ModelError                        fix the model file
|   `-- ContractError                 say how pictures go in or how outputs are read
|-- BackendUnavailable                install something, or choose another back end
|-- BuildError                        this plan cannot be built; try another
|-- EngineError                       a loaded engine failed while running
|-- SinkError                         results could not be written; nothing already written is lost
|-- AccuracyError                     the answers got worse; decide
`-- Overloaded                        retry later

Every message has three parts: what it must be, what it is, what to do.
"""

__all__ = [
    "AccuracyError",
    "AnnotationError",
    "BackendUnavailable",
    "BuildError",
    "ContractError",
    "EngineError",
    "InputError",
    "ModelError",
    "Overloaded",
    "PictureError",
    "SaccadeError",
    "SinkError",
]


class SaccadeError(Exception):
    """Any error that saccade raises on purpose."""


class InputError(SaccadeError, ValueError):
    """The call is wrong: an option, a path or an array."""


class PictureError(InputError):
    """One picture cannot be used: unreadable, not a picture, broken or too large."""


class AnnotationError(InputError):
    """An annotation file cannot be used as it is."""


class ModelError(SaccadeError):
    """The model file is missing, broken, unsafe or not a network saccade can read."""


class ContractError(ModelError):
    """How pictures go into the model, or how its outputs are read, is not known."""


class BackendUnavailable(SaccadeError):
    """A back end is not installed or cannot work on this machine."""


class BuildError(SaccadeError):
    """A back end cannot load or build this model under this plan."""


class EngineError(SaccadeError):
    """A loaded engine failed while it ran."""


class SinkError(SaccadeError):
    """Results could not be written. What was written before is safe."""


class AccuracyError(SaccadeError):
    """The answers got worse than the caller allows."""


class Overloaded(SaccadeError):
    """There is more work than can be queued; try again later."""
