"""An inference engine of our own for NVIDIA GPUs: from a graph to one CUDA graph."""
