"""How good a detector is: COCO average precision, curves, confusion matrix, pictures and ``predictions.json``."""
