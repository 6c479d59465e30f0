"""Right answers, from elsewhere than the plan says."""

from saccade.backends._wrapping import Wrapped

from saccade.types import Fallback

BACKEND = Wrapped("wrong_fallback", fallbacks=(Fallback("device", "cuda:0", "cpu"),))
