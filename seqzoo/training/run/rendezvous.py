"""Meeting of the processes of one run before JAX connects them.

JAX ends the process with SIGABRT and a stack trace when one of them does not come in time, and does not say which. So they first
meet at the same address: process 0 listens there, each other process connects, says its index and waits for one line. Either all
have come, and all go on to JAX, or all end with the same message.

    process 1 -> 0    seqzoo 1/3
    process 0 -> 1    seqzoo start, or seqzoo: and the reason why there is no start
"""

import contextlib
import errno
import os
import re
import selectors
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn, cast

START = "seqzoo start"
REFUSED = "seqzoo: "
RETRY = 0.2  # seconds between two attempts to reach process 0
GRACE = 5.0  # seconds that process 0's refusal may come later than the end of a process's own patience


@dataclass(frozen=True)
class Group:
    """Place of this process in a group: the address of process 0, the number of processes, the index of this one."""

    host: str
    port: int
    count: int
    index: int

    @property
    def address(self) -> str:
        """HOST:PORT, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def flag(self, index: int | str) -> str:
        """The option that starts process `index`."""
        return f"--distributed {self.address}/{self.count}/{index}"


def parse(words: str) -> Group:
    """The group that ADDRESS:PORT/COUNT/INDEX names.

    Raises:
      ValueError: another form, a port or an index out of range, or a host that has no address.
    """
    place, count, index = [*words.rsplit("/", 2), "", ""][:3]
    host, _, port = place.rpartition(":")
    if not (host and count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise ValueError("with INDEX from 0 to COUNT - 1")
    if not (port.isdecimal() and 1 <= int(port) <= 65535):
        raise ValueError(f"with a PORT from 1 to 65535, found {port!r}")
    host = host.removeprefix("[").removesuffix("]")
    try:
        socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host can be so long
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"with a known host, found {host!r} ({reason})") from error
    return Group(host, int(port), int(count), int(index))


def meet(group: Group, seconds: float) -> None:
    """Returns in all processes of a group when all have come.

    Raises:
      ValueError: some did not come in so many seconds, they disagree, or process 0 cannot listen at the address. One line says
        which, in all processes that came.
    """
    deadline = time.monotonic() + seconds
    if group.index:
        _say(f"process {group.index} of {group.count} waits for process 0 at {group.address}, for at most {seconds:g} s")
        return _join(group, seconds, deadline)
    with _listen(group) as server:
        if group.count == 1:
            return None
        others = _indices(range(1, group.count))
        _say(f"process 0 of {group.count} waits at {group.address} for process {others}, for at most {seconds:g} s")
        reached = _gather(group, seconds, deadline, server)
    for each in reached:  # the port is free again for JAX
        _tell(each, START)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _indices(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _listen(group: Group) -> socket.socket:
    """A socket that listens at the port in all networks, as JAX does; raises ValueError if it is in use, or not reached there."""
    try:
        try:
            server = socket.create_server(("", group.port), family=socket.AF_INET6, dualstack_ipv6=True)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
                raise
            server = socket.create_server(("", group.port))  # a machine without IPv6
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ValueError(f"process 0 cannot listen at port {group.port}: {reason}; wanted a free port") from error
    try:
        socket.create_connection((group.host, group.port), timeout=GRACE).close()
    except OSError as error:
        server.close()
        reason = error.strerror or error
        raise ValueError(f"process 0 cannot be reached at {group.address}: {reason}; wanted an address of its machine") from error
    return server


def _gather(group: Group, seconds: float, deadline: float, server: socket.socket) -> list[socket.socket]:
    """The connections of all other processes, when all are there."""
    present: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as opened:
        selector.register(server, selectors.EVENT_READ)
        while len(present) < group.count - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = _indices(index for index in range(1, group.count) if index not in present)
                reason = f"process {missing} of {group.count} did not come in {seconds:g} s; wanted {group.flag('INDEX')} for each"
                _refuse(present.values(), reason)
            for key, _ in selector.select(left):
                if key.fileobj is server:
                    connection = opened.enter_context(server.accept()[0])
                    connection.setblocking(False)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = cast(socket.socket, key.fileobj)
                found = re.fullmatch(r"seqzoo (\d+)/(\d+)\n", _read(connection))
                if not found:  # the process has ended, or it is none of ours
                    present = {index: each for index, each in present.items() if each is not connection}
                    selector.unregister(connection)
                    connection.close()
                    continue
                index, count = map(int, found.groups())
                if count != group.count:
                    reason = f"process {index} was started as one of {count}, process 0 as one of {group.count}; wanted one COUNT"
                    _refuse([*present.values(), connection], reason)
                if index in present or index == 0:
                    reason = f"two processes were started as process {index} of {count}; wanted another INDEX for each"
                    _refuse([*present.values(), connection], reason)
                present[index] = connection
        return [each.dup() for each in present.values()]


def _refuse(connections: Iterable[socket.socket], reason: str) -> NoReturn:
    """Ends the start in all processes that came."""
    for each in connections:
        _tell(each, REFUSED + reason)
    raise ValueError(reason)


def _read(connection: socket.socket) -> str:
    """The text that has come on a connection; empty at its end."""
    try:
        return connection.recv(100).decode(errors="replace")
    except OSError:
        return ""


def _tell(connection: socket.socket, line: str) -> None:
    """Sends the last line on a connection, if the process is still there, and closes it."""
    with contextlib.suppress(OSError), connection:  # one that has ended meanwhile is reported by JAX
        connection.setblocking(True)
        connection.sendall(f"{line}\n".encode())


def _join(group: Group, seconds: float, deadline: float) -> None:
    """Returns when process 0 says that all have come."""
    answered = False
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((group.host, group.port), timeout=left) as connection:
                connection.sendall(f"seqzoo {group.index}/{group.count}\n".encode())
                answered = True
                connection.settimeout(left + GRACE)
                line = connection.makefile(errors="replace").readline().strip()
                answered = line != ""  # empty: process 0 has ended; it may be started again
        except OSError:
            line = ""
        if line == START:
            return
        if line.startswith(REFUSED):
            raise ValueError(line.removeprefix(REFUSED))
        time.sleep(RETRY)
    if answered:
        raise ValueError(
            f"process 0 at {group.address} did not start in {seconds:g} s; its own message says which process it waits for"
        )
    raise ValueError(f"process 0 did not answer at {group.address} in {seconds:g} s; wanted one with {group.flag(0)}")
