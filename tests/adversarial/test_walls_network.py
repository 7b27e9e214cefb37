"""Nobody can be reached, by whatever address."""

import os
import socket

import pytest
from msgspec.structs import replace
from sandbox_kit import needs_sandbox, policy, run

pytestmark = [pytest.mark.kernel, needs_sandbox]

FAMILIES = {"unix": 1, "inet": 2, "ax25": 3, "ipx": 4, "inet6": 10, "netlink": 16, "packet": 17, "rds": 21, "can": 29, "tipc": 30, "bluetooth": 31, "alg": 38, "vsock": 40, "xdp": 44, "mctp": 45}
OPEN = ("socket", "connect", "bind", "listen", "accept", "accept4")


async def test_no_socket_of_any_family_can_be_made():
    ran = await run(f"say({{name: tried(socket.socket, family, socket.SOCK_DGRAM) for name, family in {FAMILIES!r}.items()}})")
    assert ran.said == dict.fromkeys(FAMILIES, "EPERM")


async def test_a_pair_of_sockets_for_worker_pools_works():
    assert (await run("a, b = socket.socketpair(); a.sendall(b'x'); say(b.recv(1).decode())")).said == "x"


async def test_a_pair_cannot_be_turned_towards_the_world():
    ran = await run("a, b = socket.socketpair(); say([tried(a.bind, '\\0x'), tried(a.connect, '/tmp/x'), tried(a.listen)])")
    assert ran.said == ["EPERM", "EPERM", "EPERM"]


async def test_without_the_filter_there_is_still_no_way_out():
    """The network namespace alone: a loopback of its own, no route."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = await run(f"say([tried(socket.create_connection, ('127.0.0.1', {port}), 2), tried(socket.create_connection, ('192.0.2.1', 80), 2)])",
                        using=replace(policy(), extra_calls=OPEN))  # fmt: skip
    assert ran.said[0] in ("ECONNREFUSED", "EACCES")
    assert ran.said[1] in ("ENETUNREACH", "EACCES")


async def test_without_the_filter_abstract_sockets_of_the_host_are_still_out_of_reach():
    name = f"\0crusades-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        ran = await run(f"say(tried(socket.socket(socket.AF_UNIX).connect, {name!r}))", using=replace(policy(), extra_calls=OPEN))
    assert ran.said in ("ECONNREFUSED", "EPERM")


async def test_without_the_filter_socket_files_of_the_host_are_still_out_of_reach(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        ran = await run(f"say(tried(socket.socket(socket.AF_UNIX).connect, {str(path)!r}))", using=replace(policy(), extra_calls=OPEN))
    assert ran.said == "ENOENT"


async def test_names_are_not_resolved():
    assert (await run("""
        try: socket.getaddrinfo('example.com', 80); say('resolved')
        except OSError: say('refused')
    """)).said == "refused"  # fmt: skip


async def test_the_hosts_interfaces_and_neighbours_are_not_told():
    ran = await run("say([open('/proc/net/dev').read().count(':'), len(open('/proc/net/arp').readlines()), len(open('/proc/net/tcp').readlines()), os.uname().nodename])")
    assert ran.said == [1, 1, 1, "sandbox"]
