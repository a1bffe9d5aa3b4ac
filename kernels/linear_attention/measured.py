"""The fastest forms, forward alone and with gradients, where they were timed: platform, what decays, (rows times heads, k, v).

Written by `python -m benchmarks.choose`, which says how.
"""

MEASURED = {
    "cpu": {
        "channel": {
            (8, 64, 64): ("loop", "loop"),
        },
        "head": {
            (8, 64, 64): ("loop", "chunked"),
        },
        "none": {
            (8, 64, 64): ("loop", "chunked"),
        },
        "value": {
            (8, 64, 64): ("loop", "loop"),
        },
    },
}
