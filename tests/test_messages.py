"""Buffers of messages are used again as soon as they have arrived, and never before; receives are posted."""

from typing import Any

import pytest
import torch
from reference import normal

from lpnet.messages import FREE, KINDS, Outbox, Posted, buffer_for, readable


class Request:
    """A send that arrives when it is told to."""

    def __init__(self, seen: Any) -> None:
        self.seen, self.arrived = seen, False

    def Test(self) -> bool:
        return self.arrived


class Post:
    """What MPI was given."""

    def __init__(self) -> None:
        self.sent: list[Request] = []

    def __call__(self, seen: Any) -> Request:
        self.sent.append(Request(seen))
        return self.sent[-1]

    @property
    def places(self) -> list[int]:
        return [request.seen.__array_interface__["data"][0] for request in self.sent]


def test_a_message_is_what_its_tensor_was() -> None:
    out, post = Outbox(False), Post()
    for seed in range(6):
        x = normal(3, 4, seed=seed).T
        out.put(x, post)
        x.zero_()
        post.sent[seed].arrived = seed % 2 == 0
        for other in range(seed + 1):
            if not post.sent[other].arrived:
                assert torch.equal(torch.from_numpy(post.sent[other].seen), normal(3, 4, seed=other).T)


def test_buffers_of_messages_that_arrived_are_used_again() -> None:
    out, post = Outbox(False), Post()
    for _ in range(20):
        out.put(normal(3, 4), post)
        post.sent[-1].arrived = True
    assert len(set(post.places)) == 1
    waiting = Post()
    for _ in range(5):
        out.put(normal(3, 4), waiting)
    assert len(set(waiting.places)) == 5  # none has arrived
    for other in (normal(4, 3), normal(3, 4).float()):
        out.put(other, post)
        assert post.places[-1] not in waiting.places
        assert post.sent[-1].seen.shape == other.shape


def test_few_buffers_are_kept() -> None:
    out, post = Outbox(False), Post()
    for size in range(1, 3 * KINDS):
        for _ in range(2 * FREE):
            out.put(normal(size), post)
        for request in post.sent:
            request.arrived = True
    out.put(normal(1), post)
    assert len(out._free) <= KINDS
    assert all(len(buffers) <= FREE for buffers in out._free.values())


@pytest.mark.parametrize("x", [normal(2, 3).T, torch.arange(3), torch.tensor(True), normal(2).requires_grad_()])
def test_buffers_are_contiguous_and_like_their_tensor(x: Any) -> None:
    buffer = buffer_for(x, False)
    assert buffer.is_contiguous()
    assert (buffer.shape, buffer.dtype) == (x.shape, x.dtype)
    assert readable(buffer).shape == x.shape


def test_a_posted_receive_is_the_receive() -> None:
    class Echo:
        def recv(self, like: Any, source: int) -> Any:
            return like + source

    assert torch.equal(Posted(Echo(), torch.zeros(2), 3).wait(), torch.full((2,), 3.0))
