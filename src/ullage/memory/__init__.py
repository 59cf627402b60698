"""The memory engine: estimate, plan, apply, measure."""
