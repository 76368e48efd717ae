"""The model of the comparison, made from a seed."""

import struct

from .peer import SHAPE


def write_model(path):
    """A GGUF of random F16 weights in the shape of a 1.1B Llama, without a tokenizer."""
    import numpy

    hidden, feed = SHAPE["hidden"], SHAPE["feed_forward"]
    kv = hidden // SHAPE["heads"] * SHAPE["kv_heads"]
    tensors = [("token_embd.weight", SHAPE["vocabulary"], hidden)]
    for layer in range(SHAPE["layers"]):
        for name, rows, columns in [
            ("attn_norm", hidden, 0),
            ("attn_q", hidden, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_norm", hidden, 0),
            ("ffn_gate", feed, hidden),
            ("ffn_up", feed, hidden),
            ("ffn_down", hidden, feed),
        ]:
            tensors.append((f"blk.{layer}.{name}.weight", rows, columns))
    tensors += [("output_norm.weight", hidden, 0), ("output.weight", SHAPE["vocabulary"], hidden)]

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    metadata = [
        ("general.architecture", "llama"),
        ("general.name", "atlas benchmark 1.1B"),
        ("general.file_type", 1),
        ("general.alignment", 32),
        ("llama.block_count", SHAPE["layers"]),
        ("llama.context_length", 8192),
        ("llama.embedding_length", hidden),
        ("llama.feed_forward_length", feed),
        ("llama.attention.head_count", SHAPE["heads"]),
        ("llama.attention.head_count_kv", SHAPE["kv_heads"]),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5),
        ("llama.rope.dimension_count", hidden // SHAPE["heads"]),
        ("llama.rope.freq_base", 10000.0),
        ("llama.vocab_size", SHAPE["vocabulary"]),
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
    for name, rows, columns in tensors:
        dimensions = [columns, rows] if columns else [rows]
        header += text(name) + struct.pack("<I", len(dimensions))
        header += b"".join(struct.pack("<Q", dimension) for dimension in dimensions)
        header += struct.pack("<IQ", 1 if columns else 0, offset)
        offset += (rows * columns * 2 if columns else rows * 4) + 31 & ~31
    header += bytes(-len(header) % 32)
    random = numpy.random.default_rng(7)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        file.write(header)
        for _, rows, columns in tensors:
            if columns:
                values = random.standard_normal(rows * columns, dtype=numpy.float32) * columns**-0.5
                data = values.astype(numpy.float16).tobytes()
            else:
                data = numpy.ones(rows, dtype=numpy.float32).tobytes()
            file.write(data + bytes(-len(data) % 32))
    partial.rename(path)
