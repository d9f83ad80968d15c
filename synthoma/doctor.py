"""What this machine has, and what would not be reproducible on it."""

import os
from collections.abc import Iterator

from synthoma.engine.versions import versions


def examine() -> Iterator[str]:
    """Lines for a person: versions, devices, caveats."""
    import torch  # noqa: PLC0415

    for name, found in versions().items():
        yield f"{name:24} {found}"
    yield f"{'CPU threads':24} {torch.get_num_threads()} of {os.cpu_count()} cores"
    bf16 = "fast" if fast_bf16() else "slow: use train.precision=float32"
    yield f"{'bfloat16 on the CPU':24} {bf16}"
    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            yield f"{f'GPU {k}':24} {torch.cuda.get_device_name(k)}"
    else:
        yield f"{'GPU':24} none that torch can use; everything runs on the CPU"
    yield "reproducible: on this machine, the same command and seed give the same bytes, also after"
    yield "  a kill and a resume, with the same number of CPU threads (train.threads)."
    yield "not reproducible: last bits across processors, thread counts, torch versions and GPUs."


def fast_bf16() -> bool:
    """Whether the processor has bfloat16 instructions."""
    import torch  # noqa: PLC0415

    return bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())
