"""Standard output and error that never raise: what cannot be printed is dropped, and the program goes on.

A reader may close the pipe (`| head`), a terminal may be gone, the disk of a log may be full, and an encoding may lack characters.
None of these may end a run of days.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from rich.console import Console

from seqzoo.data.atomic_io import error_reason

# For encodings without them, at the same width, so that tables stay tables. Frames of tables are chosen by rich.
PLAIN = str.maketrans({"\u25cf": "*", "\u25cb": "o", "\u2026": ".", "\xd7": "x", "\u2013": "-"})


class Forgiving:
    """A text stream whose `write` and `flush` raise neither OSError nor UnicodeError; all else is that of `stream`.

    Characters that the encoding lacks are written as escapes, such as \\u03c0. Text that the system refuses is dropped; the first
    error is kept as `failure`, and `note(failure)` is called.
    """

    def __init__(self, stream: TextIO, note: Callable[[Exception], None] | None = None):
        self.failure: Exception | None = None
        self._stream = stream
        self._note = note

    def write(self, text: str) -> int:
        """Writes what can be written; returns the length of the text."""
        with self._dropping():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.translate(PLAIN).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes each line as `write` does."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Passes on what is buffered, if the system takes it."""
        with self._dropping():
            self._stream.flush()

    def close_quietly(self) -> None:
        """Flushes; after a failure, connects the file to /dev/null, since Python flushes once more when it ends."""
        self.flush()
        if self.failure is not None:
            with contextlib.suppress(OSError, ValueError):  # a stream without a file, or a closed one, has nothing to flush
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            if self.failure is None:
                self.failure = error
                if self._note is not None:
                    self._note(error)


def note_on_stderr(error: Exception) -> None:
    """Prints that standard output fails."""
    if sys.stderr is not None:
        Console(file=_forgiving(sys.stderr)).print(
            f"note: standard output fails ({error_reason(error)}); what it does not take is dropped", markup=False, soft_wrap=True
        )


@contextlib.contextmanager
def forgiving_streams() -> Iterator[None]:
    """Context in which sys.stdout and sys.stderr are forgiving, for the command line.

    Streams that were closed at the start, `>&-`, become /dev/null: the next file that is opened would take their number, and what
    libraries print would land in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _forgiving(sys.stdout, note_on_stderr), _forgiving(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Forgiving):
                stream.close_quietly()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def forgiving_console(console: Console) -> Iterator[None]:
    """Context in which a console's file is forgiving."""
    given = console.file
    standard = given is (sys.stderr if console.stderr else sys.stdout)
    console.file = _forgiving(given, note_on_stderr if given is sys.stdout else None)
    try:
        yield
    finally:
        console.file = None if standard else given  # pyright: ignore[reportAttributeAccessIssue]  (None: the standard stream)


def _forgiving(stream: Any, note: Callable[[Exception], None] | None = None) -> Any:
    return stream if stream is None or isinstance(stream, Forgiving) else Forgiving(stream, note)
