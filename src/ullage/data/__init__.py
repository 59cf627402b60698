"""Data: sources, cleaning, augmentation, and the loader."""
