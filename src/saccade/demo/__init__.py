"""Pictures with known truth, drawn on the spot, so that a first run needs no data."""
