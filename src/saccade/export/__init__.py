"""Deployments for other people's servers.

What leaves here runs without saccade, so nothing here can promise its answers: every exporter says
what of the gate's evidence does not hold there.
"""

from saccade.export.triton import BACKENDS, Exported, TritonOptions, export_triton

__all__ = ["BACKENDS", "Exported", "TritonOptions", "export_triton"]
