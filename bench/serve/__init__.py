"""Servers side by side: saccade's, and those that people use today, with the same network."""
