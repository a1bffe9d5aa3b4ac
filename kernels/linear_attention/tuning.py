"""Tuning table: times in milliseconds by platform, kind of transition, (rows times heads, k, v), and pass.

"forward" is without gradients, "backward" with them, both passes. None is the fastest of a measurement that recorded no times.
`python -m benchmarks.tune` measures and writes the table.
"""

from ..common.implementations import TuningTable

TUNING: TuningTable = {
    "cpu": {
        "channel": {
            (1, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 128, 128): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (8, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (8, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (8, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (8, 128, 128): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (64, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (64, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (64, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
        },
        "head": {
            (1, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 32, 32): {
                "forward": {"chunkwise": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 128, 128): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (8, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (8, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (8, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (8, 128, 128): {
                "forward": {"chunkwise": None},
                "backward": {"chunkwise": None},
            },
            (64, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (64, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (64, 64, 64): {
                "forward": {"chunkwise": None},
                "backward": {"chunkwise": None},
            },
        },
        "low rank": {
            (1, 8, 8): {
                "forward": {"chunkwise": None},
                "backward": {"recurrent": None},
            },
            (1, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (1, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 128, 128): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (8, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (8, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (8, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (8, 128, 128): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (64, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (64, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (64, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
        },
        "none": {
            (1, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (1, 32, 32): {
                "forward": {"chunkwise": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 128, 128): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (8, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (8, 32, 32): {
                "forward": {"chunkwise": None},
                "backward": {"chunkwise": None},
            },
            (8, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (8, 128, 128): {
                "forward": {"chunkwise": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (64, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (64, 32, 32): {
                "forward": {"chunkwise": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (64, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
        },
        "value": {
            (1, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (1, 128, 128): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (8, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (8, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (8, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
            (8, 128, 128): {
                "forward": {"recurrent": None},
                "backward": {"chunkwise": None},
            },
            (64, 8, 8): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (64, 32, 32): {
                "forward": {"recurrent": None},
                "backward": {"recurrent": None},
            },
            (64, 64, 64): {
                "forward": {"recurrent": None},
                "backward": {"recurrent_forward_chunkwise_backward": None},
            },
        },
    },
}
