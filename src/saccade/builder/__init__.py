"""From a model to the fastest deployment whose answers stayed right."""
