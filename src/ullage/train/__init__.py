"""The training loop and what it is made of. Model, loss, loader and evaluator arrive as arguments (``protocols``)."""
