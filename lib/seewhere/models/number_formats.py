"""Where a language model runs and in which number format, with the reason in words."""

from __future__ import annotations

import torch


def device_and_format(device: str | None = None, dtype: str | None = None) -> tuple[torch.device, torch.dtype, str]:
    """Device and number format, with the reason in words ("cpu, float32: no GPU found").

    Raises:
        ValueError: for a number format that torch does not have.
    """
    if device is None and torch.cuda.is_available():
        place, reason = "cuda", "a GPU was found"
    elif device is None:
        place, reason = "cpu", "no GPU found"
    else:
        place, reason = device, "as asked"
    if dtype is not None:
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"dtype={dtype!r} is not a number format of torch; expected float32, bfloat16 or float16")
    elif place.startswith("cuda"):
        kind = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    else:
        kind = torch.float32  # half precision is slower than single on most CPUs
    return torch.device(place), kind, f"{place}, {str(kind).removeprefix('torch.')}: {reason}"


def quick_dtype() -> str | None:
    """Return "bfloat16" on a processor that multiplies it natively (about three times as fast), else None.

    For experiments where the third digit of a probability does not matter; `load_language_model`'s own default stays
    float32 on a processor, so that answers agree to rounding with any other way of asking.
    """
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bfloat16" if native() else None
