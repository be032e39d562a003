"""Start the command from any folder, on a machine where this project need not be installed."""

import pathlib
import sys

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:1] = [str(BENCHMARKS), str(BENCHMARKS.parent)]  # instead of this folder itself

from accelerator import command  # noqa: E402 (found by the line above)

if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:]))
