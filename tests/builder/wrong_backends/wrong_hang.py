"""Never finishes loading."""

import threading

from saccade.backends._wrapping import Wrapped

BACKEND = Wrapped("wrong_hang", on_load=lambda: threading.Event().wait())
