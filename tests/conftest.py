"""Settings of all tests, and what keeps a job of several ranks from hanging.

A test that is marked `mpi` runs on every rank of `mpirun -n P python -m pytest --with-mpi -m mpi`, and with the serial
communicator without mpirun. Where one rank fails the others would wait for it forever: so the first failure on any rank
is printed and ends the job. Examples of property-based tests are derandomised: the same on every rank.
"""

import functools
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase

from lpnet import slab

LAUNCHED = slab.launcher() is not None

hypothesis.settings.register_profile(
    "lpnet",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25 if LAUNCHED else 100,
    # A health check by the clock, shrinking, or an explanation would run on one rank and not on the others.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large] if LAUNCHED else [],
    phases=[Phase.explicit, Phase.generate] if LAUNCHED else list(Phase),
    print_blob=not LAUNCHED,
)
hypothesis.settings.load_profile("lpnet")


@pytest.fixture(scope="session")
def comm() -> slab.Comm:
    """The ranks that the test runs on."""
    return slab.world()


class QuietFile(io.TextIOBase):
    """Where the ranks but the first report: nowhere, except for the stacks that pytest-timeout prints."""

    def __init__(self) -> None:
        self.loud = False

    def write(self, text: str) -> int:
        """Drop the text, unless it belongs to a timeout."""
        self.loud = self.loud or "+ Timeout +" in text
        return sys.__stderr__.write(text) if self.loud else len(text)


@pytest.hookimpl(trylast=True)  # after the terminal reporter is there
def pytest_configure(config: pytest.Config) -> None:
    """Under a launcher one rank reports, and every rank watches for failures."""
    if not LAUNCHED or slab.world().size == 1:
        return
    config.pluginmanager.register(Watch(config), "lpnet-watch")
    if slab.world().rank:
        config.get_terminal_writer()._file = QuietFile()


class Watch:
    """Ends the job at the first failure on any rank."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Let a property-based test fail at its first bad example, where it would go on with others."""
        for item in items:
            handle = getattr(getattr(item, "obj", None), "hypothesis", None)
            if handle is not None:
                handle.inner_test = self.aborting(handle.inner_test, item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A failed test, set-up or tear-down."""
        if report.failed:
            self.abort(f"{report.when} of {report.nodeid} failed", report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test file that cannot be imported."""
        if report.failed:
            self.abort(f"collecting {report.nodeid} failed", report.longreprtext)

    def pytest_internalerror(self, excrepr: Any) -> None:
        """A failure of pytest or of a plug-in."""
        self.abort("internal error", str(excrepr))

    def aborting(self, test: Callable[..., None], name: str) -> Callable[..., None]:
        """The test, which ends the job where it fails."""

        @functools.wraps(test)
        def wrapped(*args: Any, **kwargs: Any) -> None:
            try:
                test(*args, **kwargs)
            except hypothesis.errors.HypothesisException:
                raise  # a rejected example, not a failure
            except (Exception, pytest.fail.Exception):
                self.abort(f"{name} failed for {kwargs}", traceback.format_exc())
                raise

        return wrapped

    def abort(self, what: str, text: str) -> None:
        """Print a failure and end all ranks."""
        world = slab.world()
        if world.rank:
            time.sleep(1.0)  # mostly all ranks fail alike: let the first speak for all, which ends this one
        capture = self.config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.suspend_global_capture()
        os.write(2, f"\n[rank {world.rank} of {world.size}] {what}\n{text}\n".encode(errors="replace"))
        world.abort(1)


@pytest.fixture
def terminal() -> Iterator[None]:
    """SIGHUP is not ignored, as it may be where the tests run behind `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
