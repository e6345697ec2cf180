"""llama.cpp's own HTTP server around a GGUF file: ``python tests/support/llama_server.py MODEL.gguf [--key KEY] [--name NAME]``.

From the package xllamacpp. The first line printed is ``listening on http://127.0.0.1:PORT/v1``; ends when its standard
input closes, as it does when the process that started it is gone.
"""

from __future__ import annotations

import argparse
import sys


def main() -> None:
    """Parse the command line and serve until standard input closes."""
    import xllamacpp

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--name", default="")
    parser.add_argument("--key", default="")
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_parallel = 2
    params.n_ctx = 4096  # for both slots together
    params.cpuparams.n_threads = 1
    params.verbosity = 1
    if options.key:
        params.api_keys = [options.key]
    if options.name:
        params.model_alias = {options.name}
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}/v1", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
