"""Models of random weights, made from a seed, in the shapes of real ones and without a tokenizer."""

import struct

from .peer import SHAPE

# Those of engine/kernels/src/hip/predict/model.rs.
SHAPES = {
    "1.1b": SHAPE,
    "13b": {"layers": 40, "hidden": 5120, "heads": 40, "kv_heads": 40, "feed_forward": 13824, "vocabulary": 32016},
    "mistral-7b": {"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "feed_forward": 14336, "vocabulary": 32000},
}
# Number in GGUF, elements and bytes of a block.
F32, F16, Q4_K, Q6_K = (0, 1, 4), (1, 1, 2), (12, 256, 144), (14, 256, 210)
# Bytes of random blocks that a model's tensors of one format are cut from, each at another place.
POOL = 32 << 20


def type_of(name, layer, layers, mixture):
    """The format of a tensor in a mixture of llama.cpp's."""
    if name.endswith("norm"):
        return F32
    if mixture == "F16":
        return F16
    more = layer is not None and (layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2)
    finer = name == "output" or more and name in ("attn_v", "ffn_down")
    return Q6_K if finer else Q4_K


def tensors_of(shape, mixture):
    """Name, rows, columns and format of each, in a file's order."""
    hidden, feed, layers = shape["hidden"], shape["feed_forward"], shape["layers"]
    kv = hidden // shape["heads"] * shape["kv_heads"]
    tensors = [("token_embd", None, shape["vocabulary"], hidden)]
    for layer in range(layers):
        tensors += [
            ("attn_norm", layer, hidden, 0),
            ("attn_q", layer, hidden, hidden),
            ("attn_k", layer, kv, hidden),
            ("attn_v", layer, kv, hidden),
            ("attn_output", layer, hidden, hidden),
            ("ffn_norm", layer, hidden, 0),
            ("ffn_gate", layer, feed, hidden),
            ("ffn_up", layer, feed, hidden),
            ("ffn_down", layer, hidden, feed),
        ]
    tensors += [("output_norm", None, hidden, 0), ("output", None, shape["vocabulary"], hidden)]
    for name, layer, rows, columns in tensors:
        full = f"{name}.weight" if layer is None else f"blk.{layer}.{name}.weight"
        yield full, rows, columns, type_of(name, layer, layers, mixture)


def size_of(rows, columns, kind):
    _, elements, size = kind
    return rows * max(columns, 1) // elements * size


def blocks(random, kind, columns):
    """Random blocks of a format, their scales such that rows of so many columns have a length of about 1."""
    import numpy

    count = POOL // kind[2]
    bytes_ = random.integers(0, 256, (count, kind[2]), dtype=numpy.uint8)
    spread = columns**-0.5
    if kind == Q4_K:
        scale = numpy.full(count, spread / (32 * 4.6), dtype=numpy.float16)
        bytes_[:, 0:2] = scale.view(numpy.uint8).reshape(count, 2)
        bytes_[:, 2:4] = (scale * numpy.float16(7.5)).view(numpy.uint8).reshape(count, 2)
    else:
        scale = numpy.full(count, spread / (74 * 18), dtype=numpy.float16)
        bytes_[:, 208:210] = scale.view(numpy.uint8).reshape(count, 2)
    return memoryview(bytes_.tobytes())


def write_model(path, shape=SHAPE, mixture="F16"):
    """A GGUF of random weights in the shape of a Llama, without a tokenizer."""
    import numpy

    tensors = list(tensors_of(shape, mixture))

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    hidden = shape["hidden"]
    metadata = [
        ("general.architecture", "llama"),
        ("general.name", "atlas benchmark"),
        ("general.file_type", 1 if mixture == "F16" else 15),
        ("general.alignment", 32),
        ("llama.block_count", shape["layers"]),
        ("llama.context_length", 8192),
        ("llama.embedding_length", hidden),
        ("llama.feed_forward_length", shape["feed_forward"]),
        ("llama.attention.head_count", shape["heads"]),
        ("llama.attention.head_count_kv", shape["kv_heads"]),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5),
        ("llama.rope.dimension_count", hidden // shape["heads"]),
        ("llama.rope.freq_base", 10000.0),
        ("llama.vocab_size", shape["vocabulary"]),
        ("tokenizer.ggml.model", "none"),
    ]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata:
        header += text(key)
        if isinstance(value, str):
            header += struct.pack("<I", 8) + text(value)
        elif isinstance(value, float):
            header += struct.pack("<If", 6, value)
        else:
            header += struct.pack("<II", 4, value)
    offset = 0
    for name, rows, columns, kind in tensors:
        dimensions = [columns, rows] if columns else [rows]
        header += text(name) + struct.pack("<I", len(dimensions))
        header += b"".join(struct.pack("<Q", dimension) for dimension in dimensions)
        header += struct.pack("<IQ", kind[0], offset)
        offset += size_of(rows, columns, kind) + 31 & ~31
    header += bytes(-len(header) % 32)
    random = numpy.random.default_rng(7)
    pools = {}
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        file.write(header)
        for index, (_, rows, columns, kind) in enumerate(tensors):
            size = size_of(rows, columns, kind)
            if kind == F32:
                file.write(numpy.ones(rows, dtype=numpy.float32).tobytes())
            elif kind == F16:
                values = random.standard_normal(rows * columns, dtype=numpy.float32) * columns**-0.5
                file.write(values.astype(numpy.float16).tobytes())
            else:
                if (kind, columns) not in pools:
                    pools[kind, columns] = blocks(random, kind, columns)
                pool = pools[kind, columns]
                at, left = index * 997 * kind[2] % len(pool), size
                while left:
                    piece = pool[at : at + left]
                    file.write(piece)
                    at, left = 0, left - len(piece)
            file.write(bytes(-size % 32))
    partial.rename(path)
