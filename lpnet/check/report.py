"""What a check of a layer has found, in words and numbers."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one test.

    Attributes:
        name: of the test.
        status: "ok"; "note": works, but there is something to know; "failed".
        text: what was found, the limit, the value, what to do.
        value: the number that was measured, where there is one.
    """

    name: str
    status: Status
    text: str
    value: float | None = None


@dataclass(frozen=True)
class CheckReport:
    """What `lpnet.check` has found; ``str`` of it is a page to read.

    Attributes:
        dynamics: name of the module's class.
        stepper: name of the stepper, "none" where none fits.
        findings: one for each test, in order.
    """

    dynamics: str
    stepper: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Nothing has failed."""
        return all(finding.status != "failed" for finding in self.findings)

    def __getitem__(self, name: str) -> Finding:
        """The finding of this test; KeyError where it was not done."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        return any(finding.name == name for finding in self.findings)

    @property
    def lines(self) -> list[str]:
        """One line for each finding, below one that sums up."""
        count = sum(finding.status == "failed" for finding in self.findings)
        result = "works" if self.ok else f"{count} of {len(self.findings)} tests failed"
        marks = {"ok": "ok    ", "note": "note  ", "failed": "FAILED"}
        rows = [f"  {marks[f.status]} {f.name + ':':15} {f.text}" for f in self.findings]
        return [f"{self.dynamics} with stepper {self.stepper}: {result}", *rows]

    def __str__(self) -> str:
        return "\n".join(self.lines)
