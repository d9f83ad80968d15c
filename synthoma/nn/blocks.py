"""Layers of progressively grown GANs: equalised weights, leaky ReLU, pixel norm, batch spread.

Written for speed on CPUs: weights, not activations, are scaled; up- and downsampling are folded
into 4x4 convolutions of stride 2; the leaky ReLU's second derivative sends nothing back through
the critic instead of dense zeros.

Papers:
  Karras et al. 2018, Progressive growing of GANs, https://arxiv.org/abs/1710.10196
  (section 3: minibatch standard deviation; 4.1: equalised learning rate; 4.2: pixel norm)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.2
EPSILON = 1e-8

#: Sums a 3-tap filter into the 4 taps of "filter, then average two" (times 2) ...
_DOWN = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
#: ... and of "double, then filter", for a transposed convolution, whose filter is mirrored.
_UP = _DOWN.flip(0)


class EqualConv(nn.Module):
    """A convolution with equalised learning rate, by itself or with a resampling folded in.

    Weights are N(0, 1) and multiplied by He's constant, gain / sqrt(fan-in), when used.

    ``resample="up"`` equals nearest-neighbour doubling followed by the 3x3 convolution,
    ``"down"`` equals the convolution followed by 2x2 averaging; both are one 4x4 convolution of
    stride 2 (the original's ``fused_scale``).

    ``extra`` channels, repeated ``copies`` times, are concatenated behind the others. They are
    convolved on their own (copies with the sum of their weights) and added: the same algebra
    without odd channel counts, which are slow on CPUs. The fan-in is joint.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_px: Literal[1, 3],
        *,
        extra: int = 0,
        copies: int = 1,
        resample: Literal["none", "up", "down"] = "none",
        gain: float = 2**0.5,
    ) -> None:
        super().__init__()
        channels = channels_in + extra * copies
        self.channels_in, self.extra, self.copies = channels_in, extra, copies
        self.kernel_px, self.resample = kernel_px, resample
        self.scale = gain * (channels * kernel_px**2) ** -0.5
        self.weight = nn.Parameter(torch.randn(channels_out, channels, kernel_px, kernel_px))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        if resample != "none":
            taps = _UP if resample == "up" else _DOWN / 2
            fold = torch.einsum("ab,cd->acbd", taps, taps).reshape(9, 16)
            self.register_buffer("fold", fold, persistent=False)

    def effective_weight(self) -> Float[Tensor, "o i k k"]:
        """The scaled weight: copies summed, 4x4 where a resampling is folded in."""
        weight: Tensor = self.weight
        if self.extra and self.copies > 1:
            own, repeated = weight.tensor_split([self.channels_in], dim=1)
            summed = repeated.unflatten(1, (self.copies, self.extra)).sum(dim=1)
            weight = torch.cat([own, summed], dim=1)
        if self.resample == "none":
            return weight * self.scale
        folded = weight.flatten(2) @ (cast(Tensor, self.fold) * self.scale)
        return folded.unflatten(2, (4, 4))

    def ready(
        self, dtype: torch.dtype, *, channels_last: bool
    ) -> Callable[[Tensor, Tensor | None], Tensor]:
        """The convolution with its weight prepared once, for several uses in one turn."""
        weight, axis = self.effective_weight(), 1
        if self.resample == "up":
            weight, axis = weight.transpose(0, 1), 0
            conv = partial(F.conv_transpose2d, stride=2, padding=1)
        elif self.resample == "down":
            conv = partial(F.conv2d, stride=2, padding=1)
        else:
            conv = partial(F.conv2d, padding=self.kernel_px // 2)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        main, rest = (
            part.to(dtype=dtype, memory_format=layout)
            for part in weight.tensor_split([self.channels_in], dim=axis)
        )
        bias = self.bias.to(dtype)

        def run(x: Tensor, extra: Tensor | None = None) -> Tensor:
            x = conv(x.to(dtype=dtype, memory_format=layout), main, bias)
            if self.extra:
                if extra is None:
                    raise ValueError("the extra channels of this convolution are missing")
                x.add_(conv(extra.to(dtype=dtype, memory_format=layout), rest))
            return x

        return run

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """x (n, in, y, x), extra (n, extra, y, x) -> (n, out, y', x')."""
        return self.ready(x.dtype, channels_last=False)(x, extra)


class EqualLinear(nn.Module):
    """A dense layer with equalised learning rate; always computed in the weights' precision."""

    def __init__(
        self, features_in: int, features_out: int, *, gain: float = 2**0.5, bias: bool = True
    ) -> None:
        super().__init__()
        self.scale = gain * features_in**-0.5
        self.weight = nn.Parameter(torch.randn(features_out, features_in))
        self.bias = nn.Parameter(torch.zeros(features_out)) if bias else None

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """x (n, in) -> (n, out)."""
        return F.linear(x.to(self.weight.dtype), self.weight * self.scale, self.bias)


class _LeakyGradient(torch.autograd.Function):
    """grad -> grad where out > 0, SLOPE * grad elsewhere; linear in grad, constant in out.

    No gradient must stay none, or autograd makes zeros of it and pushes them on.
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor, out: Tensor) -> Tensor:
        ctx.save_for_backward(out)
        ctx.set_materialize_grads(False)
        return torch.ops.aten.leaky_relu_backward(grad, out, SLOPE, True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        (out,), (grad,) = ctx.saved_tensors, grads
        return (None if grad is None else _LeakyGradient.apply(grad, out)), None


class _Leaky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = F.leaky_relu_(x, SLOPE)
        ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        (out,), (grad,) = ctx.saved_tensors, grads
        return None if grad is None else _LeakyGradient.apply(grad, out.detach())


def leaky_relu_(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, in place, whose double backward costs no dense zeros.

    PyTorch's own emits zeros towards the forward graph, which a gradient penalty then drags
    through every convolution before it. The second derivative with respect to x is 0 almost
    everywhere; here it is None.
    """
    return cast(Tensor, _Leaky.apply(x))


class _LeakyPixelNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.leaky_relu(x, SLOPE)
        norm = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=_wide(x.dtype))
        factor = (norm.square() / x.shape[1] + EPSILON).rsqrt().to(x.dtype)
        out = y.mul_(factor)
        ctx.save_for_backward(out, factor)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,), (out, factor) = grads, ctx.saved_tensors
        along = (grad * out).mean(dim=1, keepdim=True)
        toward = torch.addcmul(grad, out, along, value=-1).mul_(factor)
        return torch.ops.aten.leaky_relu_backward(toward, out, SLOPE, True)


def leaky_pixel_norm(x: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y x"]:
    """Leaky ReLU, then each pixel's feature vector brought to unit mean square (its eq. 2 applies).

    Differentiable once: for generators, which no penalty differentiates twice. Norms are summed
    in float32 where x is bfloat16.
    """
    return cast(Tensor, _LeakyPixelNorm.apply(x))


def pixel_norm(x: Float[Tensor, "n c *space"]) -> Float[Tensor, "n c *space"]:
    """Each position's feature vector brought to unit mean square (Karras et al. 2018, eq. 2)."""
    return x * (x.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()


def batch_spread(
    x: Float[Tensor, "n c y x"], *, group: int = 4, parts: int = 1
) -> Float[Tensor, "n 1 1 1"]:
    """How far images of a group differ: the mean over features of their standard deviation.

    Args:
        x: Features; statistics are in float32 where they are bfloat16.
        group: Images that are compared with one another. As in the original's code, image i
            belongs to the group of i modulo the number of groups. Where the batch does not
            divide, it is one group.
        parts: The batch is so many batches behind one another (real, fake), never compared.
    """
    n = len(x) // parts
    group = group if n % group == 0 else n
    grouped = x.to(_wide(x.dtype)).reshape(parts, group, n // group, -1)
    variance = grouped.var(dim=1, correction=0)
    spread = (variance + EPSILON).sqrt().mean(dim=2)
    return spread[:, None].expand(-1, group, -1).reshape(-1, 1, 1, 1)


def halve(x: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y//2 x//2"]:
    """2x2 averages (a plain mean: `avg_pool2d`'s double backward emits dense zeros)."""
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean(dim=(3, 5))


def double(x: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c 2*y 2*x"]:
    """Every pixel four times."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def ready(
    layer: nn.Module, dtype: torch.dtype, side_px: int
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A convolution prepared for images of a side: channels last, except below 8x8 pixels."""
    return cast(EqualConv, layer).ready(dtype, channels_last=side_px >= 8)


def run(layer: nn.Module, x: Tensor, extra: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A convolution, once; channels last where its input or output has 8x8 pixels."""
    up = cast(EqualConv, layer).resample == "up"
    return ready(layer, dtype, x.shape[-1] * (2 if up else 1))(x, extra)


def pyramid(image: Tensor | None, low_px: int, high_px: int) -> dict[int, Tensor]:
    """The image at each side from `high_px` down to `low_px`, by side."""
    levels: dict[int, Tensor] = {}
    while image is not None and image.shape[-1] >= low_px:
        if image.shape[-1] <= high_px:
            levels[image.shape[-1]] = image
        if image.shape[-1] == low_px:
            break
        image = halve(image)
    return levels


def convolution_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast asks for, or None."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
