"""The command line: ``main`` parses, ``verbs`` call the api and render."""
