"""Deployments as files for other people's machinery.

triton         a model repository for NVIDIA Triton; runs without saccade, so nothing here can
               promise its answers: what of the gate's evidence does not hold there is said
kubernetes     manifests that run `saccade serve` with the resources of the bundle's plan
"""

from saccade.export.kubernetes import KubernetesOptions, export_kubernetes
from saccade.export.triton import BACKENDS, Exported, TritonOptions, export_triton

__all__ = [
    "BACKENDS",
    "Exported",
    "KubernetesOptions",
    "TritonOptions",
    "export_kubernetes",
    "export_triton",
]
