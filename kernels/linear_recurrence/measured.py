"""The fastest forms, forward alone and with gradients, where they were timed: platform, dtype, (rows, channels).

Written by `python -m benchmarks.choose`, which says how.
"""

MEASURED = {
    "cpu": {
        "complex": {
            (1, 64): ("recurrent", "recurrent"),
            (1, 512): ("recurrent", "recurrent"),
            (1, 2048): ("recurrent", "recurrent"),
            (8, 64): ("recurrent", "recurrent"),
            (8, 512): ("recurrent", "recurrent"),
            (8, 2048): ("recurrent", "recurrent"),
        },
        "real": {
            (1, 64): ("recurrent", "recurrent"),
            (1, 512): ("recurrent", "recurrent"),
            (1, 2048): ("recurrent", "recurrent"),
            (8, 64): ("recurrent", "recurrent"),
            (8, 512): ("recurrent", "recurrent"),
            (8, 2048): ("recurrent", "recurrent"),
        },
    },
}
