"""Programs that are measured, and the machine they are measured on. Standard library only."""

import json
import os
import pathlib
import platform
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent


def environment():
    """Without what would give one program other threads than the others."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "OMP_", "MKL_", "XLA_"))}


def last_json(command):
    """The last line of a program's output that is a JSON object."""
    done = subprocess.run([str(c) for c in command], env=environment(), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {command[0]} {command[1]} failed; its message is above")
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


class Refused(Exception):
    """A program that was stopped or failed; why."""


def watched(command, threads, memory_mb, seconds):
    """The last JSON object a program prints, which runs on as many cores as it may have threads, the last ones. It is stopped
    when its peak memory (VmHWM) or its time goes beyond the limit.

    The memory is looked at 50 times a second and in what the program says of itself at its end, so no peak is missed that
    the system saw.
    """
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    process = subprocess.Popen(
        [str(c) for c in command], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    begun, reason = time.monotonic(), None
    while process.poll() is None and reason is None:
        try:
            with open(f"/proc/{process.pid}/status") as status:
                peak = next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:")), 0)
        except (FileNotFoundError, ProcessLookupError):
            break
        if peak > memory_mb:
            reason = "memory"
        elif time.monotonic() - begun > seconds:
            reason = "time"
        else:
            time.sleep(0.02)
    if reason:
        process.kill()
    out, err = process.communicate()
    if reason:
        raise Refused(reason)
    objects = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not objects:
        lines = [line for line in (err + out).splitlines() if line.strip()]
        raise Refused(lines[-1].strip() if lines else f"exit status {process.returncode}")
    result = json.loads(objects[-1])
    if result["peak_memory_mb"] > memory_mb:
        raise Refused("memory")
    return result


def machine():
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "system": f"{platform.system()} {platform.machine()}"}


def commit():
    git = lambda *words: subprocess.run(["git", "-C", HERE, *words], stdout=subprocess.PIPE, text=True).stdout.strip()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../../src", "../../Cargo.lock")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
