"""The fastest forms, forward alone and with gradients, where they were timed: platform, what decays, (rows times heads, k, v).

Written by `python -m benchmarks.choose`, which says how.
"""

MEASURED = {
    "cpu": {
        "channel": {
            (1, 8, 8): ("loop", "mixed"),
            (1, 32, 32): ("chunked", "chunked"),
            (1, 64, 64): ("loop", "mixed"),
            (1, 128, 128): ("loop", "chunked"),
            (8, 8, 8): ("loop", "loop"),
            (8, 32, 32): ("loop", "mixed"),
            (8, 64, 64): ("loop", "mixed"),
            (8, 128, 128): ("loop", "chunked"),
            (64, 8, 8): ("loop", "loop"),
            (64, 32, 32): ("loop", "chunked"),
            (64, 64, 64): ("loop", "mixed"),
        },
        "head": {
            (1, 8, 8): ("loop", "chunked"),
            (1, 32, 32): ("chunked", "chunked"),
            (1, 64, 64): ("loop", "mixed"),
            (1, 128, 128): ("loop", "chunked"),
            (8, 8, 8): ("loop", "loop"),
            (8, 32, 32): ("chunked", "chunked"),
            (8, 64, 64): ("loop", "mixed"),
            (8, 128, 128): ("chunked", "chunked"),
            (64, 8, 8): ("loop", "loop"),
            (64, 32, 32): ("loop", "chunked"),
            (64, 64, 64): ("loop", "mixed"),
        },
        "none": {
            (1, 8, 8): ("loop", "mixed"),
            (1, 32, 32): ("chunked", "chunked"),
            (1, 64, 64): ("loop", "chunked"),
            (1, 128, 128): ("loop", "chunked"),
            (8, 8, 8): ("loop", "loop"),
            (8, 32, 32): ("chunked", "mixed"),
            (8, 64, 64): ("loop", "mixed"),
            (8, 128, 128): ("chunked", "chunked"),
            (64, 8, 8): ("loop", "loop"),
            (64, 32, 32): ("chunked", "chunked"),
            (64, 64, 64): ("loop", "chunked"),
        },
        "value": {
            (1, 8, 8): ("loop", "chunked"),
            (1, 32, 32): ("loop", "mixed"),
            (1, 64, 64): ("loop", "chunked"),
            (1, 128, 128): ("loop", "chunked"),
            (8, 8, 8): ("loop", "loop"),
            (8, 32, 32): ("loop", "loop"),
            (8, 64, 64): ("loop", "mixed"),
            (8, 128, 128): ("loop", "mixed"),
            (64, 8, 8): ("loop", "loop"),
            (64, 32, 32): ("loop", "loop"),
            (64, 64, 64): ("loop", "chunked"),
        },
    },
}
