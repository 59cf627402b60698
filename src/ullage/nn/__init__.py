"""Layers that two or more families share, and the typed raw outputs by which networks and losses meet."""
