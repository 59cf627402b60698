"""Detectors at work: sources in, predictors, results, sinks out."""
