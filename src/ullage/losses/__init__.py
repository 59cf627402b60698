"""Assigners and losses: they return sums and normalisers, never means."""
