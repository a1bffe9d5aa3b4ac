"""Optimizer: update rules, learning-rate schedules, gradient accumulation, skipped steps, sharding of their state.

update_rules           adamw, adamp, lamb, lion, sgd, adafactor, muon; `register` enrols your own
schedules              constant, linear, cosine, wsd, rsqrt; `register_schedule` enrols your own
gradient_accumulation  micro-batches for memory, updates of several batches
skip_nonfinite         steps whose loss or gradient is not finite
optimizer              all of these together, from the section `optimizer` of the config
sharding               the optimizer's state over devices
"""

from seqzoo.training.optim import functions, schedules, update_rules
from seqzoo.training.optim.schedules import WSD, Constant, Cosine, InverseSquareRoot, Linear, Schedule, register_schedule
from seqzoo.training.optim.update_rules import SGD, Adafactor, AdamP, AdamW, Lamb, Lion, Muon, UpdateRule, register

__all__ = [
    "SGD",
    "WSD",
    "Adafactor",
    "AdamP",
    "AdamW",
    "Constant",
    "Cosine",
    "InverseSquareRoot",
    "Lamb",
    "Linear",
    "Lion",
    "Muon",
    "Schedule",
    "UpdateRule",
    "functions",
    "register",
    "register_schedule",
    "schedules",
    "update_rules",
]
