"""Takes memory until it is stopped."""

import numpy as np
from saccade.backends._wrapping import Wrapped


def eat():
    eaten = []
    while True:
        eaten.append(np.ones(4 << 20))  # 32 MiB that are really there


BACKEND = Wrapped("wrong_eater", on_load=eat)
