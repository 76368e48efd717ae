"""The peer's server, `llama-server`, built natively from the sources that its Python package ships."""

import os
import shutil
import subprocess
import sys

from .peer import PEER

# Everything that the server does not need is left out; its web page too.
OPTIONS = ["GGML_NATIVE=ON", "BUILD_SHARED_LIBS=OFF", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF",
           "LLAMA_BUILD_APP=OFF", "LLAMA_USE_PREBUILT_UI=OFF", "LLAMA_OPENSSL=OFF"]


def build_server(folder):
    """The path of the program."""
    program = folder / "llama-server"
    built = folder / "built"
    if built.exists() and built.read_text() == PEER:
        return program
    print(f"building the server of {PEER} natively, once (10 to 30 minutes of processor time)", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    tools = folder / "venv" / "bin"
    subprocess.run([tools / "pip", "install", "--quiet", "cmake", "ninja"], check=True)
    subprocess.run([tools / "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", "-d", folder, PEER], check=True)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder / "package", filter="data")
    (source,) = folder.glob("package/*/vendor/llama.cpp")
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    configure = [tools / "cmake", "-S", source, "-B", folder / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run([*configure, *(f"-D{option}" for option in OPTIONS)], check=True, env=environment, stdout=subprocess.DEVNULL)
    build = ["nice", tools / "cmake", "--build", folder / "build", "--target", "llama-server", "--parallel", str(os.cpu_count())]
    subprocess.run(build, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shutil.move(folder / "build" / "bin" / "llama-server", program)
    for rest in ("venv", "package", "build"):
        shutil.rmtree(folder / rest)
    archive.unlink()
    built.write_text(PEER)
    return program
