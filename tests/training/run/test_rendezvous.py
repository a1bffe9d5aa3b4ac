"""The start of several processes, and the end of one when another has ended. The processes are threads here."""

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from seqzoo.training.run import distributed, rendezvous
from seqzoo.training.run.rendezvous import Group, meet, parse

PATIENCE = 60.0  # seconds, for what comes
SHORT = 0.5  # seconds, for what never comes


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def outcomes(port, *places, seconds):
    """The errors of `meet`, or None, for processes started as (index, count), at the same time."""

    def one(place):
        index, count = place
        try:
            meet(Group("127.0.0.1", port, count, index), seconds)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(len(places)) as threads:
        return list(threads.map(one, places))


@pytest.mark.parametrize(
    "words, says",
    [
        ("10.0.0.1/2/0", "INDEX from 0 to COUNT - 1"),
        ("10.0.0.1:1234/0/0", "INDEX from 0 to COUNT - 1"),
        ("10.0.0.1:1234/2/-1", "INDEX from 0 to COUNT - 1"),
        (":1234/2/0", "INDEX from 0 to COUNT - 1"),
        ("10.0.0.1:/2/0", "a PORT from 1 to 65535, found ''"),
        ("10.0.0.1:0/2/0", "a PORT from 1 to 65535, found '0'"),
        ("10.0.0.1:65536/2/0", "a PORT from 1 to 65535, found '65536'"),
        ("10.0.0.1:http/2/0", "a PORT from 1 to 65535, found 'http'"),
        (f"{'x' * 64}:1234/2/0", f"a known host, found '{'x' * 64}'"),
    ],
)
def test_odd_addresses_are_refused(words, says):
    with pytest.raises(ValueError) as caught:
        parse(words)
    assert says in str(caught.value)


@pytest.mark.parametrize("words", ["127.0.0.1:1234/3/1", "[::1]:1234/3/1"])
def test_an_address_is_read_and_shown_as_it_was_written(words):
    group = parse(words)
    assert (group.port, group.count, group.index) == (1234, 3, 1) and group.flag(1) == f"--distributed {words}"


def test_all_go_on_when_all_have_come_and_the_port_is_free_for_jax(port):
    assert outcomes(port, (2, 3), (0, 3), (1, 3), seconds=PATIENCE) == [None] * 3
    socket.create_server(("127.0.0.1", port)).close()
    assert outcomes(port, (0, 1), seconds=PATIENCE) == [None]


def test_each_says_for_whom_it_waits(port, capsys):
    outcomes(port, (0, 2), (1, 2), seconds=PATIENCE)
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"process 0 of 2 waits at 127.0.0.1:{port} for process 1, for at most 60 s",
        f"process 1 of 2 waits for process 0 at 127.0.0.1:{port}, for at most 60 s",
    ]


def test_who_did_not_come_is_named_in_all_that_came(port):
    says = f"process 1, 3 of 4 did not come in 2 s; wanted --distributed 127.0.0.1:{port}/4/INDEX for each"
    assert outcomes(port, (0, 4), (2, 4), seconds=2) == [says] * 2


@pytest.mark.parametrize(
    "places, says",
    [
        ([(0, 3), (2, 3), (2, 3)], "two processes were started as process 2 of 3; wanted another INDEX for each"),
        ([(0, 3), (1, 2)], "process 1 was started as one of 2, process 0 as one of 3; wanted one COUNT"),
    ],
)
def test_processes_that_do_not_fit_all_end_with_the_reason(places, says, port):
    assert outcomes(port, *places, seconds=PATIENCE) == [says] * len(places)


def test_without_process_0_the_others_say_that_it_did_not_answer(port):
    (said,) = outcomes(port, (1, 2), seconds=SHORT)
    assert said == f"process 0 did not answer at 127.0.0.1:{port} in 0.5 s; wanted one with --distributed 127.0.0.1:{port}/2/0"


def test_a_program_that_listens_there_and_is_not_process_0_is_not_waited_for_longer(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "GRACE", 0.1)
    with socket.create_server(("127.0.0.1", port)):
        (said,) = outcomes(port, (1, 2), seconds=SHORT)
    assert said.startswith(f"process 0 at 127.0.0.1:{port} did not start in 0.5 s")


def test_strangers_and_a_process_that_left_are_no_obstacle(port):
    group = Group("127.0.0.1", port, 3, 0)
    raised = []

    def first():
        try:
            meet(group, PATIENCE)
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((group.host, port)) as left:
            left.sendall(b"seqzoo 1/3\n")  # process 1 comes, and is killed
            break
    with socket.create_connection((group.host, port)) as stranger, socket.create_connection((group.host, port)) as silent:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(10) == b""
        assert outcomes(port, (1, 3), (2, 3), seconds=PATIENCE) == [None, None]
        assert silent.recv(10) == b""
    thread.join()
    assert not raised


@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_in_use_is_refused_at_once(family, host, port):
    try:
        server = socket.create_server((host, port), family=family)
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    with server:
        assert outcomes(port, (0, 2), seconds=PATIENCE) == [
            f"process 0 cannot listen at port {port}: Address already in use; wanted a free port"
        ]


def test_an_address_of_another_machine_is_refused_in_process_0(port, monkeypatch):
    def refused(*_, **__):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refused)
    (said,) = outcomes(port, (0, 2), seconds=PATIENCE)
    assert said == f"process 0 cannot be reached at 127.0.0.1:{port}: Connection refused; wanted an address of its machine"


def test_the_processes_meet_before_jax_connects_them_and_jax_waits_no_longer(monkeypatch):
    calls = []
    monkeypatch.setattr(rendezvous, "meet", lambda group, seconds: calls.append((group.flag(group.index), seconds)))
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda **given: calls.append(given))
    distributed.initialise("127.0.0.1:1234/3/2", 7.5)
    place = {"coordinator_address": "127.0.0.1:1234", "num_processes": 3, "process_id": 2}
    assert calls == [("--distributed 127.0.0.1:1234/3/2", 7.5), place | {"initialization_timeout": 8}]


def test_a_cluster_that_jax_does_not_know_is_refused_in_one_line(monkeypatch):
    def unknown(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(distributed.jax.distributed, "initialize", unknown)
    with pytest.raises(ValueError, match=r"auto: JAX does not join a cluster here .coordinator_address should be defined.*wanted"):
        distributed.initialise("auto")


GONE = [
    "UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4711\nmore lines",
    "INTERNAL: NCCL operation ncclAllReduce() failed: remote process exited or there was a network error",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: orbax",
    "UNAVAILABLE: Task 1 heartbeat timeout",
]


@pytest.mark.parametrize("message", GONE)
def test_when_another_process_has_ended_this_one_ends_at_once_with_advice(message, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
    monkeypatch.setattr(distributed.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.os, "_exit", codes.append)
    with distributed.ending_with_partner(lambda: "continue here"):
        raise RuntimeError(message)
    reason = message.split("\n")[0]
    assert codes == [1]
    assert capsys.readouterr().err == f"error: another process of this run has ended ({reason}); continue here\n"


def test_a_process_that_has_not_joined_others_does_not_start_its_devices_to_end(monkeypatch):
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: pytest.fail("asks JAX for devices"))
    distributed.abort(1)


@pytest.mark.parametrize("several, message", [(True, "a bug"), (False, GONE[0])])
def test_other_errors_are_raised_as_they_are(several, message, monkeypatch):
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: several)
    with pytest.raises(RuntimeError, match=message[:10]), distributed.ending_with_partner(str):
        raise RuntimeError(message)
