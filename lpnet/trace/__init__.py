"""One trace of all ranks: what each of them did when, to be looked at in Perfetto or Chrome.

    with lpnet.trace.recording("trace.json", trunk.comm):
        net(x).sum().backward()

    python -m lpnet.trace plot trace.json
"""

from lpnet.trace.profile import Profile
from lpnet.trace.recorder import Recorder
from lpnet.trace.recording import Recording, recording

__all__ = ["Profile", "Recorder", "Recording", "recording"]
