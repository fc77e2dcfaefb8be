#!/usr/bin/env python3
"""innerloop against JAX in one run: alternately, shape by shape, a process a measurement, the same threads.

Standard library only. Writes a JSON file and prints a Markdown table (benches/results/README.md says how to read them).

    python3 compare.py --innerloop target/release/innerloop --python VENV/bin/python --out benches/results/DATE-cpu
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import subprocess
import sys

from running import commit, last_json, machine

HERE = pathlib.Path(__file__).resolve().parent

SEED = {"widths": "128,256,512,4096", "activations": "relu,relu,tanh", "shots": 5, "queries": 5}
LINEAR = {"activations": "relu,relu,linear"}
SINUSOID = {"widths": "1,40,40,1", "activations": "relu,relu,linear", "shots": 10, "queries": 10}
VIDEO = {
    "widths": "272,256,512,2048", "activations": "relu,relu,tanh", "discriminator-widths": "512,256", "frames": 8,
    "shots": 5, "queries": 5,
}
# Name, options, then the least ratio that is wanted.
SHAPES = [
    ("seed network", {**SEED, "tasks": 16, "steps": 1}, 15),
    ("seed network", {**SEED, "tasks": 16, "steps": 5}, 15),
    ("seed network", {**SEED, "tasks": 64, "steps": 1}, 15),
    ("seed network", {**SEED, "tasks": 64, "steps": 5}, 15),
    ("sinusoid", {**SINUSOID, "tasks": 25, "steps": 1}, 4),
    ("sinusoid", {**SINUSOID, "tasks": 25, "steps": 5}, 4),
    ("linear outputs", {**SEED, **LINEAR, "tasks": 16, "steps": 5}, None),
    ("linear outputs", {**SEED, **LINEAR, "tasks": 64, "steps": 5}, None),
    ("video GAN", {**VIDEO, "tasks": 16, "steps": 1}, None),
    ("video GAN", {**VIDEO, "tasks": 16, "steps": 5}, None),
]
SCALING = [("seed network", {**SEED, "tasks": tasks, "steps": 5}) for tasks in (64, 128, 256)]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--innerloop", required=True, help="the binary")
    parser.add_argument("--python", default=sys.executable, help="a Python that has JAX")
    parser.add_argument("--loop", choices=["unroll", "scan", "both"], default="unroll", help="JAX's inner loop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="a measurement takes at least so long")
    parser.add_argument("--only", help="shapes whose name holds this word")
    parser.add_argument("--out", help="DATE-cpu: writes DATE-cpu.json and DATE-cpu.md")
    return parser.parse_args()


def options(shape, args, seconds=None):
    flags = [f"--{name}={value}" for name, value in shape.items()]
    return [*flags, f"--threads={args.threads}", f"--seconds={args.seconds if seconds is None else seconds}", "--json"]


def ours(shape, args, form, seconds=None):
    return last_json([args.innerloop, "bench", f"--strategy={form}", *options(shape, args, seconds)])


def theirs(shape, args, loop):
    return last_json([args.python, HERE / "jax_maml.py", f"--loop={loop}", *options(shape, args)])


def summary(rounds):
    """The rounds' medians and what hardly varies, in one record."""
    return {
        "median_ms": statistics.median(r["median_ms"] for r in rounds),
        "rounds_ms": [round(r["median_ms"], 4) for r in rounds],
        "peak_memory_mb": round(max(r["peak_memory_mb"] for r in rounds), 1),
    }


def compare(name, shape, target, args):
    form = ours(shape, args, "dual", 0)["planned"]
    # One step needs no loop: both ways are then the same program but for the scan's overhead.
    loops = ["unroll", "scan"] if args.loop == "both" and shape["steps"] > 1 else [args.loop.replace("both", "unroll")]
    mine, peers = [], {loop: [] for loop in loops}
    for _ in range(args.rounds):
        mine.append(ours(shape, args, form))
        for loop, rounds in peers.items():
            rounds.append(theirs(shape, args, loop))
    loop = min(peers, key=lambda loop: statistics.median(r["median_ms"] for r in peers[loop]))
    ratios = [peer["median_ms"] / own["median_ms"] for own, peer in zip(mine, peers[loop])]
    share = statistics.median(r["flop_per_second"] / r["matrix_flop_per_second"] for r in mine)
    row = {
        "network": name, **{k: shape[k] for k in ("widths", "shots", "queries", "tasks", "steps")},
        "innerloop": {
            **summary(mine), "strategy": form, "arena_mb": round(mine[0]["arena_mb"], 1),
            "gflop_per_second": round(statistics.median(r["flop_per_second"] for r in mine) / 1e9, 1),
            "matrix_gflop_per_second": round(statistics.median(r["matrix_flop_per_second"] for r in mine) / 1e9, 1),
            "share_of_matrix_rate": round(share, 3),
        },
        "jax": {**summary(peers[loop]), "loop": loop,
                "idle_memory_mb": round(peers[loop][0]["idle_memory_mb"], 1)},
        "jax_loops_ms": {loop: summary(rounds)["median_ms"] for loop, rounds in peers.items()},
        "ratio": round(statistics.median(ratios), 2), "ratio_rounds": [round(r, 2) for r in ratios], "target": target,
    }
    row["memory_ratio"] = round(row["jax"]["peak_memory_mb"] / row["innerloop"]["peak_memory_mb"], 2)
    return row, peers[loop][0]


def scaling(args):
    rounds = [[] for _ in SCALING]
    for _ in range(args.rounds):
        for (_, shape), measured in zip(SCALING, rounds):
            measured.append(ours(shape, args, "dual"))
    weights = sum(i * o + o for i, o in zip(rounds[0][0]["widths"], rounds[0][0]["widths"][1:])) * 4e-6
    rows = []
    for (name, shape), measured in zip(SCALING, rounds):
        row = {"network": name, "tasks": shape["tasks"], "steps": shape["steps"], **summary(measured)}
        row["arena_mb"] = round(measured[0]["arena_mb"], 1)
        if rows:
            before = rows[-1]
            row["time_for_twice_the_tasks"] = round(row["median_ms"] / before["median_ms"], 3)
            grown = (row["arena_mb"] - before["arena_mb"]) / (row["tasks"] - before["tasks"])
            row["copies_of_the_weights_a_task"] = round(grown / weights, 3)
        rows.append(row)
    return rows


def markdown(result):
    m, versions = result["machine"], result["versions"]
    lines = [
        f"{result['date']}, {m['cpu']}, {m['cores']} cores, {result['threads']} threads, f32; commit {result['commit']}; "
        f"innerloop {versions['innerloop']}, JAX {versions['jax']}. Medians of {result['rounds']} rounds.",
        "",
        "| network | T | S | innerloop | JAX | ratio | wanted | of matrix rate | peak memory | JAX's | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        own, peer = row["innerloop"], row["jax"]
        wanted = f"{row['target']}x" if row["target"] else ""
        lines.append(
            f"| {row['network']} | {row['tasks']} | {row['steps']} | {own['median_ms']:.3g} ms ({own['strategy']}) "
            f"| {peer['median_ms']:.4g} ms ({peer['loop']}) | {row['ratio']:.1f}x | {wanted} "
            f"| {100 * own['share_of_matrix_rate']:.0f} % of {own['matrix_gflop_per_second']:.0f} GFLOP/s "
            f"| {own['peak_memory_mb']:.0f} MB | {peer['peak_memory_mb']:.0f} MB | {row['memory_ratio']:.1f}x |"
        )
    if result["scaling"]:
        lines += ["", "| network | T | S | innerloop | for twice the tasks | arena | copies of the weights a task |",
                  "|---|---|---|---|---|---|---|"]
    for row in result["scaling"]:
        twice, copies = row.get("time_for_twice_the_tasks"), row.get("copies_of_the_weights_a_task")
        lines.append(
            f"| {row['network']} | {row['tasks']} | {row['steps']} | {row['median_ms']:.4g} ms "
            f"| {f'{twice:.2f}x the time' if twice else ''} | {row['arena_mb']:.0f} MB | {copies or ''} |"
        )
    return "\n".join(lines) + "\n"


def main():
    args = arguments()
    result = {
        "date": datetime.date.today().isoformat(), "machine": machine(), "commit": commit(), "threads": args.threads,
        "rounds": args.rounds, "seconds": args.seconds, "precision": "f32",
    }
    version = subprocess.run([args.innerloop, "--version"], stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    result["versions"] = {"innerloop": version, "python": platform.python_version()}
    result["rows"], result["scaling"] = [], []

    def save():
        """After every shape, so that a run that is cut short leaves what it has."""
        text = markdown(result)
        if args.out:
            pathlib.Path(f"{args.out}.json").write_text(json.dumps(result, indent=1) + "\n")
            pathlib.Path(f"{args.out}.md").write_text(text)
        return text

    for name, shape, target in SHAPES:
        if not args.only or args.only in name:
            row, peer = compare(name, shape, target, args)
            result["rows"].append(row)
            result["versions"]["jax"] = peer["jax"]
            save()
            print(f"{name}, T = {shape['tasks']}, S = {shape['steps']}: {row['ratio']}x", file=sys.stderr, flush=True)
    if not result["rows"]:
        sys.exit(f"error: no shape has {args.only!r} in its name; leave --only out to run all")
    if not args.only:
        result["scaling"] = scaling(args)
    print(save())


if __name__ == "__main__":
    main()
