"""Dry runs on several ranks: one speaks for all, and what is predicted for a rank is what it sends."""

from collections import Counter
from typing import Any

import pytest
import torch
from counting import CountingComm
from small_runs import SMALL

from lpnet import MGRIT, LayerParallel, dynamics, train
from lpnet.dryrun import Subject, Walk
from lpnet.slab import Comm

pytestmark = pytest.mark.mpi


def test_rank_0_speaks(comm: Comm, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert (f"{comm.size} rank" in said.out) == (comm.rank == 0)
    assert train.main([*SMALL, "--dry-run", "--fabric=string"]) == 2
    assert bool(capsys.readouterr().err) == (comm.rank == 0)


@pytest.mark.parametrize("store", ["all", "cpoints"])
def test_messages_are_those_of_the_engine(comm: Comm, store: Any) -> None:
    counting, x = CountingComm(comm), torch.ones(6, 3)
    options = MGRIT(coarsening=(3, 2), levels=3, cycles=1)
    trunk = LayerParallel(dynamics.Dense(3), 22, 1.0, None, options, options, comm=counting, store=store)
    for _ in range(2):
        counting.reset()
        trunk(x).square().sum().backward()
    ledger = Walk(Subject.of(trunk, x.shape), comm.size, comm.rank).ledger
    sent = Counter({kind: n for kind, n in ledger.sent.items() if kind in ("broadcast", "sum")})
    sent["send"] = sum(ledger.sent.values()) - sum(sent.values())
    assert +sent == +counting.count
    assert sum(ledger.bytes.values()) == sum(counting.bytes.values())
