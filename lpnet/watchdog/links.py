"""Connections of all ranks with rank 0 beside MPI: a line of JSON for each message, over TCP.

Rank 0 listens, tells its address by MPI once, and knows its peers by a secret that it tells along with it. Messages
are small and few; they are put into buffers and sent as the system takes them, so that nothing here ever blocks.
"""

import json
import resource
import secrets
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from lpnet.launch import share
from lpnet.slab import Comm

Message = dict[str, Any]

PATIENCE = 10.0
"""Seconds for one address to answer."""

_LONGEST, _HELLO = 2**20, 2**10  # bytes of a line, and of the first one


class Link:
    """One connection, which never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.rank, self.ended = sock, -1, False
        self._read, self._unsent = b"", b""
        sock.setblocking(False)

    def put(self, message: Message) -> None:
        """Send, now or as soon as it can be; a peer that does not read is told no more."""
        if len(self._unsent) < _LONGEST:
            self._unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what has not been sent, as much as the system takes."""
        try:
            while self._unsent and not self.ended:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self.ended = True

    def messages(self) -> Iterator[Message]:
        """Those that have come; whatever is no message ends the connection, as its end does."""
        try:
            part = self.sock.recv(2**16)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        self.ended = self.ended or not part
        *lines, self._read = (self._read + part).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict):
                self.ended = True
                return
            yield message
        self.ended = self.ended or len(self._read) > (_LONGEST if self.rank >= 0 else _HELLO)


class Links:
    """Those of this rank: on rank 0 with all others, elsewhere with rank 0.

    Attributes:
        peers: the connections by the rank at the other end.
    """

    def __init__(self) -> None:
        self.peers: dict[int, Link] = {}
        self._selector = selectors.DefaultSelector()
        self._server: socket.socket | None = None
        self._secret = ""
        self._wakes, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)

    def wake(self) -> None:
        """Let `poll`, in another thread, come back at once."""
        self._wakes.send(b".")

    def poll(self, seconds: float) -> list[tuple[int, Message]]:
        """The messages that come until some do, for so many seconds at most, each with the rank that it is from."""
        for link in self.peers.values():
            link.flush()
        found: list[tuple[int, Message]] = []
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._server:
                self._accept()
            elif isinstance(key.data, Link):
                found += self._heard(key.data)
            else:
                self._woken.recv(2**10)
        return found

    def _accept(self) -> None:
        assert self._server is not None
        try:
            sock, _ = self._server.accept()
        except OSError:  # it is gone already
            return
        self._selector.register(sock, selectors.EVENT_READ, Link(sock))

    def _heard(self, link: Link) -> list[tuple[int, Message]]:
        found = []
        for message in link.messages():
            if link.rank >= 0:
                found.append((link.rank, message))
            elif message.get("secret") == self._secret and isinstance(message.get("rank"), int):
                link.rank = message["rank"]
                self.peers[link.rank] = link
                link.put({})
            else:
                link.ended = True
        if link.ended:
            self._selector.unregister(link.sock)
            link.sock.close()
        return found

    def listen(self, local: bool) -> Message:
        """What the others need to know, to connect to this rank: addresses, the port, and the secret."""
        self._server = _server(local)
        self._server.setblocking(False)
        self._secret = secrets.token_hex(16)
        self._selector.register(self._server, selectors.EVENT_READ, None)
        hosts = ["127.0.0.1"] if local else _hosts()
        return {"hosts": hosts, "port": self._server.getsockname()[1], "secret": self._secret}

    def connect(self, to: Message, rank: int) -> bool:
        """Connect this rank to the one that listens; whether it answered."""
        for host in to["hosts"]:
            sock = _greeted(host, to, rank)
            if sock is not None:
                self.peers[0] = link = Link(sock)
                link.rank = 0
                self._selector.register(sock, selectors.EVENT_READ, link)
                return True
        return False

    def close(self) -> None:
        """End all connections."""
        self._selector.close()
        for sock in (*(link.sock for link in self.peers.values()), self._server, self._wakes, self._woken):
            if sock is not None:
                sock.close()


def connected(comm: Comm) -> Links | None:
    """All ranks connected with rank 0; None, on all ranks, if one cannot reach it. Collective."""
    links = Links()
    if comm.size == 1:
        return links
    local = getattr(comm, "local_size", 1) == comm.size
    at = json.loads(share(comm, json.dumps(links.listen(local)) if comm.rank == 0 else ""))
    if comm.rank:
        good = links.connect(at, comm.rank)
    else:
        _allow_files(comm.size)
        until = time.monotonic() + PATIENCE * (1 + len(at["hosts"]))
        while len(links.peers) < comm.size - 1 and time.monotonic() < until:
            links.poll(0.1)
        good = len(links.peers) == comm.size - 1
    if comm.agree(int(not good)):
        links.close()
        return None
    return links


def _greeted(host: str, to: Message, rank: int) -> socket.socket | None:
    """A connection that rank 0 has answered; None: nobody is there, or somebody else."""
    with ExitStack() as stack:
        try:
            sock = stack.enter_context(socket.create_connection((host, to["port"]), PATIENCE))
            sock.sendall(json.dumps({"secret": to["secret"], "rank": rank}).encode() + b"\n")
            if sock.recv(2**10) != b"{}\n":
                return None
        except OSError:
            return None
        stack.pop_all()
        return sock


def _allow_files(ranks: int) -> None:
    """As many open files as there are connections, and what a process has besides, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = ranks + 256
    if 0 <= soft < needed:  # a negative one is infinite
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard < 0 else min(needed, hard), hard))


def _server(local: bool) -> socket.socket:
    if local:
        return socket.create_server(("127.0.0.1", 0), backlog=4096)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=4096)


def _hosts() -> list[str]:
    """Names and addresses by which other machines may reach this one, those that are most likely to work first."""
    name = socket.gethostname()
    found = [name, socket.getfqdn()]
    try:
        found += [str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        found.remove(name)  # which nobody can look up
    return list(dict.fromkeys(found))
