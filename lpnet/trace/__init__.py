"""One trace of all ranks: what each of them did when, to be looked at in Perfetto or Chrome.

    with lpnet.trace.recording("trace.json", trunk.comm):
        net(x).sum().backward()

    python -m lpnet.trace plot trace.json
"""

from lpnet.trace.profile import Profile
from lpnet.trace.record import Recording, recording
from lpnet.trace.recorder import Recorder

__all__ = ["Profile", "Recorder", "Recording", "recording"]
