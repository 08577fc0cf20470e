"""The precision of served rows: float32, float16, or rows packed to 8 or 4 bits with a scale and an offset each.

A row of d values is packed on its own: q = round((x - min) / scale), scale = (max - min) / 255 (or 15), so that a value
is off by at most scale / 2, plus what float16 does to scale and min in 4 bits. The formats are torch's row-wise ones,
read by `torch.ops.quantized` straight from the packed bytes; neither fbgemm nor torchrec is needed to serve them.

    float32  4 d bytes a row          int8  d + 8 bytes: values, then scale and min in float32
    float16  2 d                      int4  ceil(d / 2) + 4: two values a byte, then scale and min in float16

Training is always in float32; packing is a step of `freeze`. An odd width gets one pad column in int4, counted above.

Shapes: n rows, d their width, * any shape.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Precision = Literal["float32", "float16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int4")


def row_bytes(embedding_dim: int, precision: Precision = "float32") -> int:
    """Bytes that one row of that width takes."""
    sizes = {
        "float32": 4 * embedding_dim,
        "float16": 2 * embedding_dim,
        "int8": embedding_dim + 8,
        "int4": -(-embedding_dim // 2) + 4,
    }
    return sizes[precision]


def pack(values: Tensor, precision: Precision, what: str = "values") -> Tensor:
    """Values [n, d] float32 -> their rows at that precision: [n, d] floats, or [n, row_bytes] uint8.

    Raises ValueError that begins with `what` for values that are not finite, which would spoil the whole row, or too
    large for float16.
    """
    if precision == "float32":
        return values
    packed = _packed(values.detach().float().cpu().contiguous(), precision)
    read_back = unpack(packed, precision, values.shape[1])
    if not bool(torch.isfinite(values).all() and torch.isfinite(read_back).all()):
        raise ValueError(f"{what} cannot be packed to {precision}: some are not finite or beyond its range")
    return packed.to(values.device)


def _packed(values: Tensor, precision: Precision) -> Tensor:
    if precision == "float16":
        return values.half()
    if precision == "int8":
        eight: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(values)
        return eight
    padded = torch.cat([values, values[:, -1:]], 1) if values.shape[1] % 2 else values
    four: Tensor = torch.ops.quantized.embedding_bag_4bit_prepack(padded)
    return four


def unpack(packed: Tensor, precision: Precision, embedding_dim: int) -> Tensor:
    """The float32 values [n, d] that packed rows stand for."""
    return read_rows(packed, torch.arange(len(packed), device=packed.device), precision, embedding_dim)


def read_rows(weights: Tensor, rows: Tensor, precision: Precision, embedding_dim: int) -> Tensor:
    """Rows [*] int64 of float weights [n, d], or of packed ones -> float32 vectors [*, d]; packed rows stay packed.

    precision: of packed (uint8) weights; floats say themselves what they are, so that weights in training, always
    float32, are read by the same call.
    """
    if weights.dtype != torch.uint8:
        found = F.embedding(rows, weights)
        return found.float() if found.dtype == torch.float16 else found
    if weights.device.type != "cpu" or torch.compiler.is_exporting():  # the packed ops have no symbolic form
        return dequantised(F.embedding(rows, weights), precision, embedding_dim)
    flat = rows.reshape(-1).contiguous()
    ends = torch.arange(len(flat) + 1, device=rows.device)
    op = torch.ops.quantized
    read = op.embedding_bag_byte_rowwise_offsets if precision == "int8" else op.embedding_bag_4bit_rowwise_offsets
    vectors: Tensor = read(weights, flat, ends, False, 0, False, None, None, True)  # one row a bag
    return vectors[:, :embedding_dim].reshape(*rows.shape, embedding_dim)


def dequantised(packed: Tensor, precision: Precision, embedding_dim: int) -> Tensor:
    """Packed rows [*, row_bytes] uint8 -> [*, d] float32 in plain torch: the format's definition, and its GPU form."""
    if precision == "int8":
        scale, low = packed[..., embedding_dim:].contiguous().view(torch.float32).split(1, -1)
        eight: Tensor = packed[..., :embedding_dim] * scale + low
        return eight
    width = -(-embedding_dim // 2)
    scale, low = packed[..., width:].contiguous().view(torch.float16).float().split(1, -1)
    nibbles = torch.stack([packed[..., :width] & 15, packed[..., :width] >> 4], dim=-1).flatten(-2)
    four: Tensor = nibbles[..., :embedding_dim] * scale + low
    return four
