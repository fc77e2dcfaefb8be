"""What the peers' programs share: options, timing, peak memory, problem files.

A peer is a Python file that makes a meta-step and hands it to `main`; see jax_maml.py and torch_maml.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def numbers(text):
    return [int(part) for part in text.split(",")]


def parser(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=numbers, default=[128, 256, 512, 4096], help="inputs, hidden, outputs")
    parser.add_argument("--activations", help="one a layer; relu, and tanh at the end when absent")
    parser.add_argument("--tasks", type=numbers, default=[16, 64])
    parser.add_argument("--steps", type=numbers, default=[1, 5])
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--precision", choices=["f32", "f64"], default="f32")
    parser.add_argument("--seconds", type=float, default=1.0,
                        help="a measurement takes at least so long; 0 for a single meta-step, to see its memory")
    parser.add_argument("--threads", type=int, default=0, help="cores the process may use; 0 for all")
    parser.add_argument("--json", action="store_true", help="also print one JSON object a measurement")
    parser.add_argument("--check", metavar="PROBLEM", nargs="+", help="compare with the answers in problem files")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser


def cores():
    """Those that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def activations(args):
    return args.activations.split(",") if args.activations else ["relu"] * (len(args.widths) - 2) + ["tanh"]


def peak_memory_mb():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024


def random_data(args, networks=()):
    """Weights of the networks of those widths, then support and query rows, in NumPy."""
    import numpy as np

    kind = np.float32 if args.precision == "f32" else np.float64
    random = np.random.default_rng(0)
    uniform = lambda *shape: random.uniform(-1, 1, shape).astype(kind)

    def network(widths):
        shapes = list(zip(widths, widths[1:]))
        return [(uniform(o, i) / np.sqrt(i).astype(kind), uniform(o) / np.sqrt(i).astype(kind)) for i, o in shapes]

    parameters = [network(widths) for widths in networks or [args.widths]]
    rows = [
        uniform(args.tasks[0], count, width)
        for count in (args.shots, args.queries) for width in (args.widths[0], args.widths[-1])
    ]
    return parameters, rows


def timed(step, seconds, before):
    """The times of `step`, which returns when all is computed, after two that warm up; at least three, or as many as fit
    into ten times the seconds wanted, and so do the two. `before`: the memory held before the first."""
    start = time.perf_counter()
    for _ in range(2 if seconds else 0):
        if time.perf_counter() - start < 10 * seconds:
            step()
    warm_up = time.perf_counter() - start
    times = []
    begun = time.perf_counter()
    while True:
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
        spent = time.perf_counter() - begun
        if spent >= seconds and (len(times) >= 3 or spent >= 10 * seconds):
            break
    return {
        "median_ms": statistics.median(times), "min_ms": min(times), "repeats": len(times), "warm_up_seconds": warm_up,
        "idle_memory_mb": before, "peak_memory_mb": peak_memory_mb(),
    }


def shape_of(args):
    return {
        "tasks": args.tasks[0], "steps": args.steps[0], "shots": args.shots, "queries": args.queries,
        "widths": args.widths, "precision": args.precision, "threads": len(cores()),
    }


def measure_all(args):
    print(f"{'tasks':>6} {'steps':>5} {'ms':>10} {'tasks/s':>9} {'peak MB':>8}", flush=True)
    for tasks in args.tasks:
        for steps in args.steps:
            command = [sys.executable, *sys.argv, f"--tasks={tasks}", f"--steps={steps}", "--one"]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            m = json.loads(line)
            rate, peak = tasks / m["median_ms"] * 1e3, m["peak_memory_mb"]
            print(f"{tasks:>6} {steps:>5} {m['median_ms']:>10.3f} {rate:>9.0f} {peak:>8.0f}", flush=True)
            if args.json:
                print(line, flush=True)


def read_problem(path):
    """Metadata and tensors of a problem file."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}


def relative_error(answers, tensors):
    """The largest relative error of the answers against the tensors `expected.*`, over the groups of tensors."""
    import numpy as np

    groups = {}
    for name, value in answers.items():
        expected = tensors[f"expected.{name}"].astype(np.float64)
        sums = groups.setdefault(name.split(".grad.")[0].split("grad.")[0], [0.0, 0.0])
        sums[0] += np.sum((np.asarray(value, np.float64) - expected) ** 2)
        sums[1] += np.sum(expected**2)
    return max(float(np.sqrt(difference / norm)) for difference, norm in groups.values())


def check_all(args, check):
    """Holds `check(metadata, tensors)`, which gives the answers by name or None, against problem files."""
    tolerance = 2e-5 if args.precision == "f32" else 1e-9
    wrong = 0
    for path in args.check:
        fields, tensors = read_problem(path)
        answers = check(fields, tensors)
        name = os.path.basename(path)
        if answers is None:
            print(f"{name}: not done here")
            continue
        error = relative_error(answers, tensors)
        met = error <= tolerance
        wrong += not met
        print(f"{name}: relative error {error:.1e}, {'within' if met else 'BEYOND'} {tolerance:.0e}", flush=True)
        if args.json:
            print(json.dumps({"problem": name, "relative_error": error}), flush=True)
    return 1 if wrong else 0


def main(args, measure, check):
    """`measure()` gives one measurement as a dictionary, in this process."""
    if args.threads:
        # Thread pools are sized by the cores a process may run on.
        os.sched_setaffinity(0, cores()[: args.threads])
    if args.check:
        return check_all(args, check)
    if args.one:
        print(json.dumps({**shape_of(args), **measure()}))
    else:
        measure_all(args)
    return 0
