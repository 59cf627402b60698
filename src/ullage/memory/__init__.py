"""The memory engine: estimate, plan, apply, measure, for any ``nn.Module`` and any step; imports torch, errors, units.

step = lambda model, batch: loss(model(batch))
plan = memory.plan(step, model, batch, budget="8GB", optimizer="SGD")
with memory.apply(model, plan):
    ...                                # train as ever: same names, same outputs, same gradients
memory.measure(step, model, batch, plan=plan)
"""

from ullage.memory.apply import Applied, apply, apply_techniques, block_names
from ullage.memory.estimate import estimate
from ullage.memory.measure import Measured, measure
from ullage.memory.plan import Considered, Estimate, Plan, need
from ullage.memory.planner import plan
from ullage.memory.rules import register_norm
from ullage.memory.technique import Technique

__all__ = [
    "Applied", "Considered", "Estimate", "Measured", "Plan", "Technique", "apply", "apply_techniques", "block_names",
    "estimate", "measure", "need", "plan", "register_norm",
]  # fmt: skip
