#!/usr/bin/env python3
"""innerloop and its peers over a grid of networks, tasks T, inner steps S and support rows K: one command.

First every program's meta-gradient is held against ours in double precision, on one problem file for each network, S and K.
Then the programs that agree take turns, shape by shape, a process a measurement, the same threads: meta-steps a second and
peak memory. Last, for the last network, the largest T (of powers of two) within the memory limit. Needs NumPy and
safetensors, and whichever of JAX, PyTorch, learn2learn, higher and TorchOpt are installed; says which are not.

    VENV/bin/python grid.py --innerloop target/release/innerloop --out benches/results/DATE-peers.json
    python3 page.py benches/results/DATE-peers.json
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import measuring
from running import HERE, Refused, commit, machine, watched

PROGRAMS = {
    "innerloop": None,
    "JAX": [HERE / "jax_maml.py"],
    "torch.func": [HERE / "torch_maml.py", "--library=functional"],
    "learn2learn": [HERE / "torch_maml.py", "--library=learn2learn"],
    "higher": [HERE / "torch_maml.py", "--library=higher"],
    "TorchOpt": [HERE / "torch_maml.py", "--library=torchopt"],
}
TOLERANCE = 2e-5
# Tasks in the problems that the programs are checked on.
CHECKED = 3


def megabytes(text):
    units = {"M": 1, "G": 1024}
    if text[-1:].upper() not in units:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number with M or G, such as 8G")
    return float(text[:-1]) * units[text[-1].upper()]


def network(text):
    """WIDTHS or WIDTHS:ACTIVATIONS."""
    widths, _, activations = text.partition(":")
    count = len(measuring.numbers(widths)) - 1
    return {"widths": widths, "activations": activations or ",".join(["relu"] * (count - 1) + ["tanh"])}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--innerloop", required=True, help="the binary")
    parser.add_argument("--python", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--networks", type=network, nargs="+", metavar="WIDTHS[:ACTIVATIONS]",
                        default=[network("1,40,40,1:relu,relu,linear"), network("128,256,512,4096")])
    parser.add_argument("--tasks", type=measuring.numbers, default=[4, 32])
    parser.add_argument("--steps", type=measuring.numbers, default=[1, 5])
    parser.add_argument("--shots", type=measuring.numbers, default=[5, 20], help="support rows, and as many query rows")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="a measurement takes at least so long")
    parser.add_argument("--memory-limit", type=megabytes, default=megabytes("8G"),
                        help="a process whose peak memory goes beyond is stopped (default 8G)")
    parser.add_argument("--patience", type=float, default=45.0, help="seconds a process may take")
    parser.add_argument("--most-tasks", type=int, default=4096, help="the largest T is sought up to here; 0: not at all")
    parser.add_argument("--note", default="", help="a word on the circumstances, for the page")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the JSON file to write")
    return parser.parse_args()


def flags(shape, args, seconds):
    options = {**shape["network"], **{k: shape[k] for k in ("tasks", "steps", "shots")}, "queries": shape["shots"]}
    return [*(f"--{k}={v}" for k, v in options.items()), f"--threads={args.threads}", f"--seconds={seconds}"]


class Bench:
    def __init__(self, args):
        self.args = args

    def measure(self, program, shape, seconds):
        """One measurement, or `Refused`."""
        limits = (self.args.threads, self.args.memory_limit, self.args.patience)
        if program != "innerloop":
            return watched([self.args.python, *PROGRAMS[program], *flags(shape, self.args, seconds), "--one"], *limits)
        run = lambda form, seconds: watched(
            [self.args.innerloop, "bench", f"--strategy={form}", "--json", *flags(shape, self.args, seconds)], *limits)
        planned = run("dual", 0)
        # A single step of the planner's choice has been measured already.
        return planned if (planned["planned"], seconds) == ("dual", 0) else run(planned["planned"], seconds)

    def compare(self, shape, programs):
        """The programs in turn, round by round."""
        rounds = {program: [] for program in programs}
        refused = {}
        for _ in range(self.args.rounds):
            for program in [p for p in programs if p not in refused]:
                try:
                    rounds[program].append(self.measure(program, shape, self.args.seconds))
                except Refused as reason:
                    refused[program] = {"refused": str(reason)}
        median = lambda program, of: statistics.median(of(r) for r in rounds[program])
        row = {**shape, "programs": {}}
        for program in programs:
            if program in refused:
                row["programs"][program] = refused[program]
                continue
            milliseconds = median(program, lambda r: r["median_ms"])
            row["programs"][program] = {
                "median_ms": milliseconds, "meta_steps_per_second": 1e3 / milliseconds,
                "rounds_ms": [r["median_ms"] for r in rounds[program]],
                "peak_memory_mb": max(r["peak_memory_mb"] for r in rounds[program]),
                **{k: rounds[program][0][k] for k in ("idle_memory_mb", "strategy") if k in rounds[program][0]},
            }
            if "innerloop" in programs and "innerloop" not in refused and program != "innerloop":
                pairs = zip(rounds[program], rounds["innerloop"])
                row["programs"][program]["times_ours"] = statistics.median(
                    theirs["median_ms"] / ours["median_ms"] for theirs, ours in pairs)
        return row

    def largest(self, program, shape):
        """The largest power of two of tasks whose meta-step stays within the limits, and what stopped the next."""
        fits, tasks = None, min(16, self.args.most_tasks)
        while tasks <= self.args.most_tasks:
            try:
                peak = self.measure(program, {**shape, "tasks": tasks}, 0)["peak_memory_mb"]
            except Refused as reason:
                return {"tasks": fits and fits[0], "peak_memory_mb": fits and fits[1], "next_stopped_by": str(reason)}
            fits = (tasks, peak)
            tasks *= 2
        return {"tasks": fits[0], "peak_memory_mb": fits[1], "next_stopped_by": "not tried"}


def write_problem(path, shape):
    """A random problem, in double precision."""
    from safetensors.numpy import save_file

    widths = measuring.numbers(shape["network"]["widths"])
    drawn = argparse.Namespace(
        precision="f64", tasks=[CHECKED], shots=shape["shots"], queries=shape["shots"], widths=widths)
    (layers,), rows = measuring.random_data(drawn)
    tensors = dict(zip(("support.x", "support.y", "query.x", "query.y"), rows))
    for i, (w, b) in enumerate(layers):
        tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = w, b
    fields = {
        "problem": "supervised", "algorithm": "maml", "activations": shape["network"]["activations"], "loss": "mse",
        "inner_steps": str(shape["steps"]), "inner_lr": "0.1", "rates": "shared", "momentum": "0",
    }
    save_file(tensors, path, fields)
    return fields, tensors


def check(args, shapes, folder):
    """Of each program the relative error of its meta-gradient in each problem, in the precision that is timed; and why
    programs are left out."""
    from safetensors.numpy import load_file, save_file

    folder = pathlib.Path(folder)
    files, errors, absent = [], {program: {} for program in args.programs}, {}
    for shape in shapes:
        name = f"{shape['network']['widths'].replace(',', '-')} S={shape['steps']} K={shape['shots']}"
        problem, file = folder / "problem.safetensors", folder / f"{name}.safetensors"
        fields, tensors = write_problem(problem, shape)

        def ours(precision):
            answer = folder / "answer.safetensors"
            command = [args.innerloop, "grad", problem, "--out", answer, f"--precision={precision}", "--quiet"]
            subprocess.run([str(c) for c in command], check=True)
            return load_file(answer)

        expected = {f"expected.{key}": value for key, value in ours("f64").items()}
        save_file({**tensors, **expected}, file, fields)
        if "innerloop" in errors:
            errors["innerloop"][name] = measuring.relative_error(ours("f32"), expected)
        files.append(file)
    for program in [p for p in args.programs if p != "innerloop"]:
        command = [args.python, *PROGRAMS[program], f"--threads={args.threads}", "--json", "--check", *files]
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                result = json.loads(line)
                errors[program][result["problem"].removesuffix(".safetensors")] = result["relative_error"]
        if len(errors[program]) < len(files):
            absent[program] = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no answer"]
            absent[program] = absent[program][0].strip()
    for program, found in errors.items():
        worst = max(found.values(), default=0.0)
        if program not in absent and not worst <= TOLERANCE:
            absent[program] = f"its meta-gradient is {worst:.1e} off ours"
    return errors, absent


def versions(args):
    code = (
        "import importlib.metadata as m, json, platform\n"
        "def v(n):\n    try: return m.version(n)\n    except m.PackageNotFoundError: return None\n"
        "names = ('jax', 'torch', 'learn2learn', 'higher', 'torchopt')\n"
        "print(json.dumps({'python': platform.python_version(), **{n: v(n) for n in names}}))"
    )
    theirs = subprocess.run([args.python, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    ours = subprocess.run([args.innerloop, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return {"innerloop": ours.split()[-1], **json.loads(theirs)}


def save(path, result):
    """Through a temporary file, so that what is there is always whole."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, path)


def main():
    args = arguments()
    say = lambda text: print(text, file=sys.stderr, flush=True)
    shapes = [
        {"network": network, "tasks": tasks, "steps": steps, "shots": shots}
        for network, shots, steps, tasks in itertools.product(args.networks, args.shots, args.steps, args.tasks)
    ]
    with tempfile.TemporaryDirectory() as folder:
        errors, absent = check(args, [shape for shape in shapes if shape["tasks"] == args.tasks[0]], folder)
    programs = [program for program in args.programs if program not in absent]
    for program, reason in absent.items():
        say(f"{program} is left out: {reason}")
    result = {
        "date": datetime.date.today().isoformat(), "machine": machine(), "commit": commit(), "threads": args.threads,
        "rounds": args.rounds, "seconds": args.seconds, "precision": "f32", "memory_limit_mb": args.memory_limit,
        "patience_seconds": args.patience, "note": args.note, "versions": versions(args), "relative_errors": errors,
        "absent": absent, "rows": [], "largest": [],
    }
    bench = Bench(args)
    for shape in shapes:
        row = bench.compare(shape, programs)
        result["rows"].append(row)
        save(args.out, result)
        times = {p: f"{m['median_ms']:.3g} ms" if "median_ms" in m else m["refused"] for p, m in row["programs"].items()}
        say(f"{shape['network']['widths']}, K = {shape['shots']}, S = {shape['steps']}, T = {shape['tasks']}: {times}")
    if args.most_tasks:
        shape = {"network": args.networks[-1], "steps": max(args.steps), "shots": min(args.shots)}
        for program in programs:
            result["largest"].append({**shape, "program": program, **bench.largest(program, shape)})
            save(args.out, result)
            say(f"largest T of {program}: {result['largest'][-1]}")


if __name__ == "__main__":
    main()
