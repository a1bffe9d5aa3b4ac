"""The C library's memory allocator on CPUs: keeps the memory of one step for the next.

A step of a small model has tens of megabytes of temporaries. glibc gives blocks of this size back to the system when they are freed
and gets them anew at the next step, page by page, each filled with zeros by the kernel: two fifths of the time of such a step.
"""

import contextlib
import ctypes

MOST = 2**31 - 1  # largest value that mallopt takes
# Parameters of mallopt(3) by number: M_MMAP_THRESHOLD, blocks of this size are mapped one by one; M_TRIM_THRESHOLD, so much free
# memory is kept; M_TOP_PAD, by so much the heap grows at once, without touching it.
SETTINGS = {-3: MOST, -1: MOST, -2: 2**28}


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees. Returns False where the C library has no such settings.

    It changes the memory of the process, up to its largest need so far, and no number. For programs, not for libraries: it acts on
    the whole process. Memory of other devices is not affected.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        return all([mallopt(parameter, value) for parameter, value in SETTINGS.items()])
    return False
