#!/usr/bin/env python3
"""Writes the ids that llama.cpp gives texts, as hashes of ten texts each: engine/src/text/vocabulary_ids.txt.

Run by hand after a change of the texts, in a virtual environment that holds llama-cpp-py-sync==0.11739 (MIT; it ships
llama.cpp's C API with its library, and nothing of it comes into this repository):

    ATLAS_WRITE_TEXTS=/tmp/texts cargo test -p atlas-engine --bins thousand
    python tests/tokenizers/reference_ids.py ~/.cache/atlas-operator/vocabularies /tmp/texts >engine/src/text/vocabulary_ids.txt

Its library asks for glibc 2.38; where there is an older one, LLAMA_LIBRARY names another build of the same API, such as
the extension module of xllamacpp==2026.10.11549 (MIT).
"""

import hashlib
import os
import sys
import unicodedata
from pathlib import Path

from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

FAMILIES = ["llama-spm", "phi-3", "llama-bpe", "deepseek-coder", "qwen2", "gpt-2", "starcoder", "command-r"]
GROUP = 10
SEPARATOR = "\n__ggml_vocab_test__\n"

ffi = get_ffi()
lib = ffi.dlopen(os.environ["LLAMA_LIBRARY"]) if "LLAMA_LIBRARY" in os.environ else get_lib()


@ffi.callback("void(enum ggml_log_level, const char *, void *)")
def silent(_level, _text, _data):
    pass


def vocabulary(path):
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    if model == ffi.NULL:
        sys.exit(f"{path} cannot be loaded")
    return lib.llama_model_get_vocab(model)


def ids(vocab, text):
    data = text.encode()
    most = len(data) + 16
    tokens = ffi.new(f"llama_token[{most}]")
    count = lib.llama_tokenize(vocab, data, len(data), tokens, most, False, False)
    return list(tokens[0:count])


def check(vocab, folder, family):
    """The library must give the ids that the family's own tokenizer gave for the texts that come with the file."""
    path = folder / f"ggml-vocab-{family}.gguf"
    texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
    expected = Path(f"{path}.out").read_text().splitlines()
    wrong = [t for t, line in zip(texts, expected) if ids(vocab, t) != [int(i) for i in line.split()]]
    print(family, len(texts), "texts", len(wrong), "differ", wrong[:3], file=sys.stderr)


def main():
    folder, texts = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes().decode().split("\0")
    lib.llama_log_set(silent, ffi.NULL)
    lib.llama_backend_init()
    for family in FAMILIES:
        vocab = vocabulary(folder / f"ggml-vocab-{family}.gguf")
        check(vocab, folder, family)
        # Qwen's own tokenizer composes characters first, which llama.cpp leaves out.
        given = [unicodedata.normalize("NFC", text) if family == "qwen2" else text for text in texts]
        all_ids = [" ".join(map(str, ids(vocab, text))) for text in given]
        groups = ["\n".join(all_ids[at : at + GROUP]) for at in range(0, len(all_ids), GROUP)]
        print(family, *(hashlib.sha256(group.encode()).hexdigest()[:12] for group in groups))


main()
