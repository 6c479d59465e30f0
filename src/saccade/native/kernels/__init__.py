"""Kernels of the engine: one file per family; `registry` finds them by the kind of a step."""
