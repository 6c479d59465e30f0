"""From ONNX nodes to steps: one rule per operator.

A value is a NumPy array, if it is the same for every picture, or a view of a buffer with the axes
that the graph gives it. Pictures lie with channels last whatever their axes are called, so that a
transpose, a reshape, a slice or a split is another view, not a step.
"""
