"""Files of the corpus that are no texts: each function writes one, from the argument that the case gives it."""

import atexit
import contextlib
import io
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

from lpnet import modelfile, train
from lpnet.log import RunLog
from lpnet.slab import Comm

GOOD = {"x": [[0.0, 1.0], [1.0, 0.5], [0.5, 0.5], [2.0, 1.0]], "y": [0, 1, 0, 1]}


def npz(path: Path, arrays: dict[str, Any]) -> None:
    """Arrays by name."""
    with path.open("wb") as file:  # by its name numpy would add .npz to others
        np.savez(file, **{name: np.array(value) for name, value in arrays.items()})


def typed(path: Path, arrays: dict[str, Any]) -> None:
    """Arrays by name, from [type, values]; None where a file has the others of `GOOD`."""
    own = {name: np.array(value, dtype=kind) for name, (kind, value) in arrays.items()}
    np.savez(path, **({name: np.array(value) for name, value in GOOD.items()} | own))


def npy(path: Path, values: Any) -> None:
    """One array, whatever the file is called."""
    with path.open("wb") as file:
        np.save(file, np.array(values))


def pickled(path: Path, _: Any) -> None:
    """An archive with an array of objects, which only unpickling could read."""
    np.savez(path, x=np.array([{"a": 1}, [2]], dtype=object), y=np.array([0, 1]))


def cut(path: Path, share: float) -> None:
    """The first bytes of a good file of this kind."""
    good(path, None)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def flipped(path: Path, place: float) -> None:
    """A good file with eight wrong bytes."""
    good(path, None)
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content[at : at + 8] = bytes(b ^ 0xFF for b in content[at : at + 8])
    path.write_bytes(content)


def good(path: Path, _: Any) -> None:
    """A file that can be used."""
    if path.suffix == ".npz":
        npz(path, GOOD)
    elif path.name == "model.h5":
        model(path, {})
    else:
        h5(path, GOOD)


def raw(path: Path, content: str) -> None:
    """Bytes, as hexadecimal digits."""
    path.write_bytes(bytes.fromhex(content))


def link(path: Path, target: str) -> None:
    """A symbolic link."""
    path.symlink_to(target)


def pipe(path: Path, _: Any) -> None:
    """A pipe, which nobody writes into."""
    os.mkfifo(path)


def zeros(path: Path, size: int) -> None:
    """So many bytes of nothing."""
    path.write_bytes(bytes(size))


def huge_npz(path: Path, shape: list[int]) -> None:
    """An archive whose header promises an array of this shape, which is not there."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {tuple(shape)}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        archive.writestr("y.npy", b"")


def csv(path: Path, text: str) -> None:
    """Text in an encoding that is not UTF-8."""
    path.write_bytes(text.encode("utf-16"))


def h5(path: Path, arrays: dict[str, Any]) -> None:
    """Data sets by name."""
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = np.array(value)


def odd_h5(path: Path, kind: str) -> None:
    """An HDF5 file with something else in the place of the features."""
    ways: dict[str, Callable[[h5py.File], object]] = {
        "group": lambda file: file.create_group("x"),
        "text": lambda file: file.create_dataset("x", data=["a", "b"], dtype=h5py.string_dtype()),
        "compound": lambda file: file.create_dataset("x", data=np.zeros(2, dtype=[("a", "f8"), ("b", "i4")])),
        "scalar": lambda file: file.create_dataset("x", data=1.0),
        "nothing": lambda file: file.create_dataset("x", dtype="f8", data=h5py.Empty("f8")),
        "huge": lambda file: file.create_dataset("x", (10**7, 10**6), dtype="f8", chunks=(1, 1000)),
        "link": lambda file: file.__setitem__("x", h5py.ExternalLink("other.h5", "/x")),
        "loose link": lambda file: file.__setitem__("x", h5py.SoftLink("/nowhere")),
        "reference": lambda file: file.create_dataset("x", data=[file.ref], dtype=h5py.ref_dtype),
    }
    with h5py.File(path, "w") as file:
        file["y"] = [0, 1]
        ways[kind](file)


def idx(path: Path, given: dict[str, Any]) -> None:
    """An IDX file: its magic number, the shape that its header says, and so many bytes behind it."""
    header = struct.pack(f">{1 + len(given['shape'])}I", given["magic"], *given["shape"])
    path.write_bytes(header + bytes(given["bytes"]))


def model(path: Path, change: dict[str, Any]) -> None:
    """A model file: of a network as it is made, and then changed.

    Args:
        path: its name.
        change: attributes ("@name"), values of its configuration ("config.trunk.layers") and data sets ("/trunk/K",
            null: without it) -> what they become.
    """
    from small_runs import network

    net, _ = network()
    modelfile.save(path, net)
    with h5py.File(path, "r+") as file:
        for key, value in change.items():
            if key.startswith("@"):
                file.attrs[key[1:]] = value
            elif key.startswith("config."):
                config = json.loads(file.attrs["config"])
                _, section, leaf = key.split(".")
                config[section][leaf] = value
                file.attrs["config"] = json.dumps(config)
            else:
                old = file[key][()] if key in file else None
                del file[key]
                if value is not None:
                    file[key] = old.astype(value) if isinstance(value, str) else np.array(value)


def repeated(path: Path, given: list[Any]) -> None:
    """A text, and another one many times behind it."""
    head, part, times = given
    path.write_text(head + part * times, encoding="utf-8")


def point(path: Path, change: dict[str, Any]) -> None:
    """A point of a scaling study, some of whose attributes are something else."""
    found = {"study": "strong", "series": "exact", "solver": "exact=1", "kind": "wall", "by": "processes"}
    found |= {"ranks": 1, "layers": 4, "T": 1.0, "width": 3, "batch": 4, "dtype": "float32", "rounds": 1}
    found |= {"seconds": 1.0, "quartiles": [1.0, 1.0], "gradient_error": None, "memory_mib": None, "fabric": None}
    found |= {"origin": {}}
    path.write_text(json.dumps([found | change]), encoding="utf-8")


def stopped(path: Path, damage: dict[str, Any]) -> None:
    """The folder of a run that has not come to its end, all of whose checkpoints are damaged alike.

    Args:
        path: of the folder.
        damage: {} for none; cut: a share that is left, flip: a place from 0 to 1, text: what they hold instead,
            zeros: a number of bytes, foreign: any other HDF5 file, without: files and folders that are missing.
    """
    shutil.copytree(_run(), path)
    for name in damage.get("without", []):
        gone = path / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    for file in (path / "checkpoints").glob("*.h5") if set(damage) - {"without"} else ():
        if "foreign" in damage:
            h5(file, damage["foreign"])
        else:
            file.write_bytes(_damaged(file.read_bytes(), **damage))


def _damaged(
    content: bytes, cut: float = 1.0, flip: float | None = None, text: str | None = None, zeros: int | None = None
) -> bytes:
    if text is not None or zeros is not None:
        return bytes(zeros or 0) if text is None else text.encode()
    at = int((flip or 0.0) * len(content))
    wrong = bytes([content[at] ^ (0 if flip is None else 0xFF)])
    return (content[:at] + wrong + content[at + 1 :])[: int(cut * len(content))]


def stopped_on_others(path: Path, _: Any) -> None:
    """A run on own.npz, which then has become another."""
    data = path.parent / "own.npz"
    good(data, None)
    _train(path, f"--data.name=file --data.path={data} --trunk.layers=4 --training.steps=1 --training.batch=null")
    npz(data, GOOD | {"x": [[1.0, 1.0], [1.0, 0.5], [0.5, 0.5], [2.0, 1.0]]})


@cache
def _run() -> Path:
    held = Path(tempfile.mkdtemp(prefix="lpnet-bad-run-"))
    atexit.register(shutil.rmtree, held)
    size = "--data.train=30 --data.validation=20 --trunk.layers=4 --trunk.width=3"
    _train(held / "run", f"{size} --training.steps=1 --training.batch=null")
    return held / "run"


def _train(path: Path, arguments: str) -> None:
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), mock.patch.object(RunLog, "draw"):
        train.job(Comm(), [*arguments.split(), "--schedule.warmup=0", f"--run.dir={path}"])
    (path / "summary.json").unlink()
