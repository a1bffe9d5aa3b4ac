"""The fastest forms, forward alone and with gradients, where they were timed: platform, dtype, (rows, channels).

Written by `python -m benchmarks.choose`, which says how.
"""

MEASURED = {
    "cpu": {
        "complex": {
            (1, 64): ("loop", "loop"),
            (1, 512): ("loop", "loop"),
            (1, 2048): ("loop", "loop"),
            (8, 64): ("loop", "loop"),
            (8, 512): ("loop", "loop"),
            (8, 2048): ("loop", "loop"),
        },
        "real": {
            (1, 64): ("loop", "loop"),
            (1, 512): ("loop", "loop"),
            (1, 2048): ("loop", "loop"),
            (8, 64): ("loop", "loop"),
            (8, 512): ("loop", "loop"),
            (8, 2048): ("loop", "loop"),
        },
    },
}
