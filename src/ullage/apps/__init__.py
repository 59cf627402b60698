"""Thin shells over the api: parse, call, render."""
