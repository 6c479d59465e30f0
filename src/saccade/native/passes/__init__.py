"""Transformations of a draft, one file each. None changes what the outputs mean."""
