"""Simultaneous training against serial training: the figures of docs/results.md, section "Simultaneous training".

    python scripts/oneshot compare [--seeds 5]       losses, accuracies and layer evaluations, at 256 layers
    python scripts/oneshot work [--seeds 5]          evaluations on the critical path of 32 ranks to an accuracy
    python scripts/oneshot hard                      control on a network that is rough in the layer index
    python scripts/oneshot warm                      what mini-batches should start from
    mpirun -n 2 python scripts/oneshot wall          seconds to 95 % on peaks against plain PyTorch on one core

Each writes docs/results/oneshot-NAME.json and docs/oneshot-NAME.png (--docs: another folder).
"""

import argparse
import json
import platform
import subprocess
from pathlib import Path

import matplotlib
import torch
from compare import compare
from hard import hard
from matplotlib import pyplot as plt
from wall import wall
from warm import warm
from work import work

from lpnet.slab import world

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
COMMANDS = {"compare": compare, "work": work, "hard": hard, "warm": warm, "wall": wall}


def main() -> None:
    """One figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--more", nargs="*", default=[], help="further arguments of lpnet.train")
    parser.add_argument("--docs", type=Path, default=DOCS)
    args = parser.parse_args()
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    found = COMMANDS[args.what](args)
    if world().rank == 0:
        name = f"oneshot-{args.what}"
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        about = {"commit": commit.stdout.strip(), "torch": torch.__version__, "python": platform.python_version()}
        (args.docs / "results").mkdir(parents=True, exist_ok=True)
        (args.docs / "results" / f"{name}.json").write_text(json.dumps(about | found, indent=1) + "\n")
        plt.savefig(args.docs / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
