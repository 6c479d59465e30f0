"""Nothing wrong: the wrapping alone must pass."""

from saccade.backends._wrapping import Wrapped

BACKEND = Wrapped("wrong_honest")
