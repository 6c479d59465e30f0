"""Transformations of a graph, one file each. Each gives the same bytes for the same input."""
