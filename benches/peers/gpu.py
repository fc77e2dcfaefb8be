#!/usr/bin/env python3
"""innerloop against JAX and PyTorch on one GPU in one run, a process a measurement. Standard library only.

Our own times are of whole meta-steps with the outer optimizer's, as CUDA graphs, on rows that are on the GPU already; the peers'
are of the meta-gradient alone, on rows that are there too. Writes OUT.json and OUT.md after every measurement.

    python3 gpu.py --innerloop target/release/innerloop --out benches/results/DATE-gpu
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import time

from running import commit

HERE = pathlib.Path(__file__).resolve().parent

SEED = {"widths": "128,256,512,4096", "activations": "relu,relu,tanh", "shots": 5, "queries": 5}
WIDE = {**SEED, "widths": "128,256,512,65536"}
LINEAR = {"activations": "relu,relu,linear"}
SINUSOID = {"widths": "1,40,40,1", "activations": "relu,relu,linear", "shots": 10, "queries": 10}
VIDEO = {
    "widths": "272,256,512,2048", "activations": "relu,relu,tanh", "discriminator-widths": "512,256", "frames": 8,
    "shots": 5, "queries": 5,
}
# Rows, inputs, outputs of a layer, against cuBLAS without bias and ReLU.
PRODUCTS = ["8192,4096,4096", "4096,512,4096", "5120,4096,512"]
# Name, options, our precisions, the peers, the ratio to JAX that is wanted.
SHAPES = [
    ("seed network", {**SEED, "tasks": 64, "steps": 5}, ["bf16", "tf32", "f32"], ["jax", "torch"], 20),
    ("seed network", {**SEED, "tasks": 256, "steps": 5}, ["bf16", "tf32", "f32"], ["jax"], 40),
    ("seed network", {**SEED, "tasks": 1024, "steps": 5}, ["bf16"], ["jax"], 60),
    ("video GAN", {**VIDEO, "tasks": 64, "steps": 5}, ["bf16", "f32"], ["jax"], 15),
    ("sinusoid", {**SINUSOID, "tasks": 25, "steps": 1}, ["f32"], ["jax"], 15),
    ("sinusoid", {**SINUSOID, "tasks": 25, "steps": 5}, ["f32"], ["jax"], 15),
    ("sinusoid", {**SINUSOID, "tasks": 4096, "steps": 1}, ["f32"], ["jax"], 15),
    ("sinusoid", {**SINUSOID, "tasks": 4096, "steps": 5}, ["f32"], ["jax"], 15),
    ("linear outputs", {**SEED, **LINEAR, "tasks": 256, "steps": 5}, ["bf16"], ["jax"], None),
    ("linear outputs", {**SEED, **LINEAR, "tasks": 1024, "steps": 5}, ["bf16"], ["jax"], None),
    ("65536 outputs", {**WIDE, "tasks": 256, "steps": 5}, ["bf16"], ["jax"], None),
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--innerloop", required=True, help="the binary")
    parser.add_argument("--python", default=sys.executable, help="a Python that has JAX and PyTorch")
    parser.add_argument("--seconds", type=float, default=0.3, help="a measurement takes at least so long")
    parser.add_argument("--limit", type=float, default=60, help="seconds that a measurement may take in all")
    parser.add_argument("--only", help="shapes whose name holds this word")
    parser.add_argument("--out", help="DATE-gpu: writes DATE-gpu.json and DATE-gpu.md")
    return parser.parse_args()


def measured(command, limit):
    """The last JSON object that a program prints, or why there is none."""
    try:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {limit:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        text = done.stderr + done.stdout
        if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
            return {"failed": "out of memory"}
        told = [line for line in text.splitlines() if line.strip()]
        return {"failed": told[-1][:200] if told else f"exit status {done.returncode}"}
    return json.loads(lines[-1])


def options(shape, args):
    return [*(f"--{name}={value}" for name, value in shape.items()), f"--seconds={args.seconds}", "--json"]


def ours(shape, precision, args):
    form = ["--strategy=resident"] if shape["widths"].startswith("1,") else ["--strategy=dual"]
    extra = ["--device=cuda", f"--precision={precision}", "--update", "--keep-rows", *form]
    return measured([args.innerloop, "bench", *extra, *options(shape, args)], args.limit)


def bytes_of(shape, precision, args):
    """What the operations of a meta-step read and write, by their own account."""
    extra = ["--device=cuda", f"--precision={precision}", "--explain", "--strategy=dual"]
    account = measured([args.innerloop, "bench", *extra, *options(shape, argparse.Namespace(seconds=0))], args.limit)
    return account.get("explanation", {}).get("total", {}).get("bytes")


def theirs(peer, shape, args):
    if peer == "jax":
        return measured([args.python, HERE / "jax_maml.py", "--one", *options(shape, args)], args.limit)
    extra = ["--library=functional", "--device=cuda", "--compile", "--one"]
    return measured([args.python, HERE / "torch_maml.py", *extra, *options(shape, args)], args.limit)


def products(args):
    """Layers, ours with their ends and the packing of their rows, and cuBLAS's product alone; and what a copy reaches."""
    theirs = subprocess.run(
        [args.python, HERE / "torch_product.py", "--shapes", *PRODUCTS], capture_output=True, text=True, timeout=args.limit
    ).stdout
    copy, *records = [json.loads(line) for line in theirs.splitlines() if line.startswith("{")] or [{}]
    rows = []
    for cublas in records:
        shape = [cublas[name] for name in ("rows", "inputs", "outputs")]
        command = [args.innerloop, "bench", "--device=cuda", "--precision=bf16", "--json", "--product", *shape]
        rows.append({"shape": shape, "cublas_ms": cublas["median_ms"], "innerloop": measured(command, args.limit)})
    return {"copied_bytes_per_second": copy.get("copied_bytes_per_second"), "rows": rows}


def told(result):
    if "failed" in result:
        return result["failed"]
    memory = result.get("gpu_memory_mb") or result.get("arena_mb")
    return f"{result['median_ms']:.3g} ms, {memory / 1e3:.2f} GB" if memory else f"{result['median_ms']:.3g} ms"


def markdown(record):
    lines = [
        f"{record['date']}, {record['gpu']}; commit {record['commit']}.", "",
        "| network | T | S | innerloop | JAX | PyTorch | ratio to JAX | wanted |", "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        own = "; ".join(f"{precision} {told(result)}" for precision, result in row["innerloop"].items())
        best = next(iter(row["innerloop"].values()))
        jax = row["peers"].get("jax", {})
        ratio = f"{jax['median_ms'] / best['median_ms']:.1f}x" if "median_ms" in jax and "median_ms" in best else ""
        peers = [told(row["peers"][peer]) if peer in row["peers"] else "" for peer in ("jax", "torch")]
        wanted = f"{row['target']}x" if row["target"] else ""
        lines.append(
            f"| {row['network']} | {row['tasks']} | {row['steps']} | {own} | {peers[0]} | {peers[1]} | {ratio} | {wanted} |"
        )
    products = record.get("products", {}).get("rows", [])
    if products:
        lines += ["", "| layer, bf16: rows, inputs, outputs | innerloop, with bias and ReLU, rows and outputs in f32 | in bf16 | cuBLAS, product alone |", "|---|---|---|---|"]
    for row in products:
        flop = 2 * row["shape"][0] * row["shape"][1] * row["shape"][2]
        tell = lambda ms: f"{ms * 1e3:.1f} us, {flop / ms / 1e9:.0f} Tflop/s"
        own = row["innerloop"]
        lines.append(
            f"| {', '.join(map(str, row['shape']))} | {tell(own['median_ms']) if 'median_ms' in own else told(own)} "
            f"| {tell(own['rounded_ms']) if own.get('rounded_ms') else ''} | {tell(row['cublas_ms'])} |"
        )
    return "\n".join(lines) + "\n"


def main():
    args = arguments()
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu = subprocess.run(query, capture_output=True, text=True).stdout.strip().replace(", ", ", driver ")
    record = {"date": datetime.date.today().isoformat(), "gpu": gpu, "commit": commit(), "rows": []}
    begun = time.monotonic()
    if not args.only:
        record["products"] = products(args)
        print(json.dumps(record["products"]), flush=True)
    for name, shape, precisions, peers, target in SHAPES:
        if args.only and args.only not in name:
            continue
        row = {"network": name, **{k: shape[k] for k in ("widths", "shots", "queries", "tasks", "steps")}, "target": target}
        row["innerloop"] = {precision: ours(shape, precision, args) for precision in precisions}
        if not shape["widths"].startswith("1,"):
            row["bytes"] = bytes_of(shape, precisions[0], args)
        row["peers"] = {}
        record["rows"].append(row)
        for peer in [None, *peers]:
            if peer:
                row["peers"][peer] = theirs(peer, shape, args)
            if args.out:
                pathlib.Path(f"{args.out}.json").write_text(json.dumps(record, indent=1) + "\n")
                pathlib.Path(f"{args.out}.md").write_text(markdown(record))
        print(markdown({**record, "products": {}, "rows": [row]}).splitlines()[-1], f"({time.monotonic() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
