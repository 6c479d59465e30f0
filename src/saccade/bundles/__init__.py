"""A deployment as a folder: written by the builder, read by everything that runs it."""
