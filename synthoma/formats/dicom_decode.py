"""Frames of DICOM files decoded in a process of their own.

    path -> frames (y, x) or (y, x, 3)

Decoders of JPEG, JPEG-LS and JPEG 2000 are C code that files from strangers can make hang, crash or
ask for all memory. So one process decodes for all files of an import, with a limit of memory and,
for each file, of processor time; a file that goes beyond costs that process alone, and the next
file gets a fresh one. The two talk in JSON lines and raw bytes, never pickles.

Decoders are pydicom's plugins under permissive licences: Pillow, pyjpegls (MIT), pylibjpeg-openjpeg
(MIT), GDCM (Apache-2.0). Not pylibjpeg-libjpeg, which is under the GPL: lossless and 12-bit JPEG go
to GDCM.
"""

import atexit
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from synthoma.errors import DataError

#: Processor time for a file, and the memory of the process with its libraries.
LIMIT_SECONDS, LIMIT_BYTES = 5.0, 3 << 29
#: However busy the machine is.
LIMIT_WAITING = 120.0


def decoded(
    path: Path, *, transfer_syntax: str, n_frames: int
) -> Iterator[Shaped[np.ndarray, "*yxc"]]:
    """The frames of a file, colours as RGB, one after the other.

    Args:
        path: The file.
        transfer_syntax: Of a file that does not say it.
        n_frames: How many it declares.

    Raises:
        DataError: The file is damaged, no decoder reads it, or a limit was reached.
    """
    request = {"path": str(path.absolute()), "syntax": transfer_syntax, "n_frames": n_frames}
    return _decoder().frames(path, {**request, "seconds": LIMIT_SECONDS})


class Decoder:
    """The other process, started when it is first needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def frames(self, path: Path, request: dict[str, Any]) -> Iterator[Shaped[np.ndarray, "*yxc"]]:
        """As `decoded`."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(LIMIT_WAITING, process.kill)
        watch.start()
        finished, answer = False, None
        try:
            process.stdin.write(_line(request))
            process.stdin.flush()
            while (answer := _answer(process.stdout)) is not None and "shape" in answer:
                n = int(np.prod(answer["shape"])) * np.dtype(answer["dtype"]).itemsize
                content = process.stdout.read(n)
                if len(content) < n:
                    break
                yield np.frombuffer(content, answer["dtype"]).reshape(answer["shape"])
            finished = answer is not None and "shape" not in answer
        except BrokenPipeError:
            pass
        finally:
            watch.cancel()
            if not finished:  # it died, or nobody wants the rest
                self.close(kill=True)
        if not finished:
            raise DataError(f"{path}: {_cause(process.returncode)}")
        if answer and answer.get("error"):
            raise DataError(f"{path}: cannot be decoded ({answer['error']})")

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.process.poll() is not None:
            self.close()
        if self.process is None:
            threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "synthoma.formats.dicom_decode"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **threads},
            )
        return self.process

    def close(self, *, kill: bool = False) -> None:
        """Let the process end."""
        process, self.process = self.process, None
        if process is None:
            return
        if kill:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        process.wait()


@cache
def _decoder() -> Decoder:
    decoder = Decoder()
    atexit.register(decoder.close)
    return decoder


def _answer(stream: Any) -> dict[str, Any] | None:
    line = stream.readline()
    return json.loads(line) if line.endswith(b"\n") else None


def _cause(returncode: int) -> str:
    if returncode == -signal.SIGPROF:
        return f"decoding took more than {LIMIT_SECONDS:g} s; refused"
    if returncode == -signal.SIGKILL:
        return f"decoding did not end within {LIMIT_WAITING:g} s, or took too much memory; refused"
    return f"the decoder crashed (signal {-returncode})"


def serve() -> None:
    """Decode the files whose paths come in, until no more come."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders print as they like
    from pydicom import dcmread  # noqa: PLC0415  loaded before memory is limited
    from pydicom.pixels.utils import pixel_array  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    warnings.simplefilter("ignore")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # then SIGPROF ends the process
        try:
            dataset = dcmread(request["path"], force=True)
            if "TransferSyntaxUID" not in dataset.file_meta:
                dataset.file_meta.TransferSyntaxUID = request["syntax"]
            frames = pixel_array(dataset)
            for frame in frames if request["n_frames"] > 1 else frames[None]:
                answers.write(_line({"dtype": frame.dtype.str, "shape": frame.shape}))
                answers.write(frame.tobytes())
            last = _line({"error": ""})
        except Exception as error:  # whatever a decoder raises is what is wrong with the file
            last = _line({"error": " ".join((str(error) or type(error).__name__).split())[:300]})
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(last)
        answers.flush()


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


if __name__ == "__main__":
    serve()
