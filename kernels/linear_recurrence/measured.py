"""The fastest forms, forward alone and with gradients, where they were timed: platform, dtype, (rows, channels).

Written by `python -m benchmarks.choose`, which says how.
"""

MEASURED = {
    "cpu": {
        "complex": {
            (1, 512): ("loop", "loop"),
        },
        "real": {
            (1, 512): ("loop", "loop"),
        },
    },
}
