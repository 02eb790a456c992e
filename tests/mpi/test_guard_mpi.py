"""Ranks that differ: an error on all of them, that says which rank and what, and nothing waits for ever."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lpnet import launch, predict, sameness, slab, train
from lpnet.errors import InputError

pytestmark = pytest.mark.mpi


def said_once(comm: slab.Comm, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line of rank 0, on all ranks; the others are silent."""
    said = capfd.readouterr().err
    assert said.count("\n") == (comm.rank == 0)
    assert comm.agree(comm.rank) == comm.size - 1  # all ranks are still in step
    return launch.share(comm, said)


def test_ranks_with_the_same_go_on(comm: slab.Comm) -> None:
    sameness.require_same(comm, {"a": 1.0, "b": [1, None]})
    sameness.require_same_start(comm, ["peaks", "--run.seed", "1"])


def test_the_first_rank_that_differs_is_named(comm: slab.Comm) -> None:
    for rank in range(1, comm.size):
        with pytest.raises(InputError) as caught:
            sameness.require_same(comm, {"same": 0, "lpnet": "1.0" if comm.rank < rank else "é"})
        line = f"lpnet: '1.0' on rank 0 and 'é' on rank {rank} given, the same on all ranks allowed"
        assert str(caught.value) == line


@pytest.mark.parametrize(
    ("first", "others", "what"),
    [
        (["--run.seed", "1"], ["--run.seed", "2"], "--run.seed: '1' on rank 0 and '2' on rank 1"),
        (["--run.seed=1"], ["--nosuch=1"], "--run.seed: '1' on rank 0 and nothing on rank 1"),
        (["--help"], [], "--help: '' on rank 0 and nothing on rank 1"),
        (["peaks"], ["--version"], "argument 1: 'peaks' on rank 0 and nothing on rank 1"),
    ],
)
@pytest.mark.parametrize("command", [train.main, predict.main])
def test_arguments_are_those_of_all_ranks(
    command: Callable[[Sequence[str]], int],
    first: list[str],
    others: list[str],
    what: str,
    comm: slab.Comm,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if comm.size == 1:
        pytest.skip("needs several ranks")
    assert command(others if comm.rank else first) == launch.BAD_INPUT
    assert what in said_once(comm, capfd)


def test_files_of_the_configuration_are_those_of_all_ranks(
    comm: slab.Comm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each rank has another file of that name; and then none, or none that can be used, on the last rank."""
    if comm.size == 1:
        pytest.skip("needs several ranks")
    monkeypatch.chdir(tmp_path)
    last = comm.rank == comm.size - 1
    Path("my.yaml").write_text(f"trunk: {{layers: {8 + last}}}\nrun: {{seed: {1 + last}}}\n")
    assert train.main(["--config=my.yaml"]) == launch.BAD_INPUT
    said = said_once(comm, capfd)
    assert f"trunk.layers: 8 on rank 0 and 9 on rank {comm.size - 1}" in said
    assert f"run.seed: 1 on rank 0 and 2 on rank {comm.size - 1} given, the same on all ranks allowed" in said
    for text, what in (("trunk: {layers: none}", "trunk.layers: none given"), (None, "No such file")):
        if last and text is not None:
            Path("my.yaml").write_text(text)
        elif last:
            Path("my.yaml").unlink()
        assert train.main(["--config=my.yaml"]) == launch.BAD_INPUT
        assert what in said_once(comm, capfd)
