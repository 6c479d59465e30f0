"""CUDA C++ sources, compiled for the card at hand when a path is loaded."""
