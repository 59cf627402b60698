"""One verb per task, each from a typed configuration to a typed result: the only place that puts the rooms together.

Import a verb from its own module (``ullage.api.train``): planning needs none of what training imports.
"""
