#!/usr/bin/env python3
"""docs/benchmarks.md and its pictures, from what grid.py wrote. Standard library only.

    python3 page.py benches/results/DATE-peers.json
"""

import json
import math
import pathlib
import sys
import textwrap

from running import HERE

ROOT = HERE.parent.parent
DOCS = ROOT / "docs"
WIDTH, HEIGHT = 520, 380
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 84, 46


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def powers(low, high, base):
    first, last = math.floor(math.log(low, base) + 1e-9), math.ceil(math.log(high, base) - 1e-9)
    return [base**power for power in range(first, max(last, first + 1) + 1)]


def panel(title, y_name, lines):
    """Lines over T, both axes logarithmic: `lines` are names and points (T, value)."""
    points = [point for _, points in lines for point in points]
    x_ticks = powers(min(p[0] for p in points), max(p[0] for p in points), 2)
    y_ticks = powers(min(p[1] for p in points), max(p[1] for p in points), 10)
    place = lambda value, ticks, start, end: start + (end - start) * math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])
    at_x = lambda value: place(value, x_ticks, LEFT, WIDTH - RIGHT)
    at_y = lambda value: place(value, y_ticks, HEIGHT - BOTTOM, TOP)
    out = [f'<text class="title" x="{WIDTH / 2}" y="22">{escape(title)}</text>']
    for tick in y_ticks:
        out.append(f'<path class="grid" d="M{LEFT} {at_y(tick):.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text class="end" x="{LEFT - 6}" y="{at_y(tick) + 4.5:.1f}">{tick:g}</text>')
    for tick in x_ticks:
        out.append(f'<path class="grid" d="M{at_x(tick):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        out.append(f'<text class="middle" x="{at_x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}">{tick:g}</text>')
    out.append(f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">tasks T</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out.append(f'<text class="middle" transform="translate(15 {middle}) rotate(-90)">{escape(y_name)}</text>')
    for index, (name, points) in enumerate(lines):
        x, y = 14 + 170 * (index % 3), 48 + 18 * (index // 3)
        out.append(f'<path class="line c{index}" d="M{x} {y - 4.5}h18"/><text x="{x + 23}" y="{y}">{escape(name)}</text>')
        path = "L".join(f"{at_x(a):.1f} {at_y(b):.1f}" for a, b in points)
        out.append(f'<path class="line c{index}" d="M{path}"/>')
        out += [f'<circle class="mark c{index}" cx="{at_x(a):.1f}" cy="{at_y(b):.1f}" r="3"/>' for a, b in points]
    return "".join(out)


def write_picture(path, panels):
    """Panels side by side, in the colours of the program's own charts."""
    style = (ROOT / "src/chart.css").read_text()
    parts = [f'<svg x="{i * WIDTH}" width="{WIDTH}" height="{HEIGHT}">{part}</svg>' for i, part in enumerate(panels)]
    size = f"0 0 {WIDTH * len(panels)} {HEIGHT}"
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="{size}"><style>{style}</style>'
        f'<rect class="paper" width="{WIDTH * len(panels)}" height="{HEIGHT}"/>{"".join(parts)}</svg>\n'
    )


def prose(text):
    return textwrap.fill(text, 124, break_on_hyphens=False, break_long_words=False)


def number(value):
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def table(heads, rows):
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *("| " + " | ".join(row) + " |" for row in rows), ""]


def refused(measured, result):
    limit, patience = result["memory_limit_mb"] / 1024, result["patience_seconds"]
    reasons = {"memory": f"over {limit:g} GB", "time": f"over {patience:g} s"}
    return reasons.get(measured["refused"], "failed")


def speed(measured, result):
    if "refused" in measured:
        return refused(measured, result)
    ratio = f" ({measured['times_ours']:.1f}x)" if "times_ours" in measured else ""
    return number(measured["meta_steps_per_second"]) + ratio


def memory(measured, result):
    return refused(measured, result) if "refused" in measured else f"{measured['peak_memory_mb']:.0f}"


def network_section(network, rows, programs, result, picture):
    title = f"{network['widths'].replace(',', '-')} ({network['activations'].replace(',', ', ')})"
    shape = lambda row: [str(row[k]) for k in ("shots", "steps", "tasks")]
    cells = lambda row, cell: [cell(row["programs"][program], result) for program in programs]
    drawn = [row for row in rows if row["steps"] == max(r["steps"] for r in rows)]
    drawn = [row for row in drawn if row["shots"] == min(r["shots"] for r in rows)]

    def lines(of):
        all_points = {
            p: [(row["tasks"], of(row["programs"][p])) for row in drawn if "refused" not in row["programs"][p]] for p in programs
        }
        return [(p, points) for p, points in all_points.items() if points]

    where = f"S = {drawn[0]['steps']}, K = {drawn[0]['shots']}"
    write_picture(DOCS / picture, [
        panel(f"Time of a meta-step, {where}", "milliseconds", lines(lambda m: m["median_ms"])),
        panel(f"Peak memory, {where}", "MB", lines(lambda m: m["peak_memory_mb"])),
    ])
    heads = ["K", "S", "T", *programs]
    return [
        f"## Network {title}", "", f"![Time and memory over the number of tasks]({picture})", "",
        "Meta-steps a second; in brackets how many times our time a meta-step takes:", "",
        *table(heads, [shape(row) + cells(row, speed) for row in rows]),
        "Peak memory of the whole process, MB:", "",
        *table(heads, [shape(row) + cells(row, memory) for row in rows]),
    ]


def largest_section(result, limit):
    if not result["largest"]:
        return []
    first = result["largest"][0]
    why = {
        "memory": "memory", "time": f"time: over {result['patience_seconds']:g} s", "not tried": "not tried",
    }
    rows = [
        [m["program"], str(m["tasks"]), f"{m['peak_memory_mb']:.0f}", why.get(m["next_stopped_by"], m["next_stopped_by"])]
        for m in result["largest"] if m["tasks"]
    ]
    return [
        f"## The largest T in {limit:g} GB", "",
        prose(f"Network {first['network']['widths'].replace(',', '-')}, S = {first['steps']}, K = {first['shots']}; T is "
              f"doubled until a process goes beyond the limit, by its peak memory (VmHWM), or beyond "
              f"{result['patience_seconds']:g} s, and is stopped. learn2learn and higher go backwards after each task and hold "
              "one at a time: time stops them, not memory."), "",
        *table(["program", "largest T", "its peak, MB", "what stopped twice as many"], rows),
    ]


def page(result, name):
    programs = list(result["rows"][0]["programs"])
    m, versions = result["machine"], result["versions"]
    limit = result["memory_limit_mb"] / 1024
    known = {"jax": "JAX", "torch": "PyTorch", "learn2learn": "learn2learn", "higher": "higher", "torchopt": "TorchOpt"}
    listed = ", ".join(f"{known[k]} {versions[k]}" for k in known if versions.get(k))
    note = f" {result['note']}" if result["note"] else ""
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    lines = [
        "# Benchmarks: beside other programs", "",
        prose(f"{result['date']}, {m['cpu']}, {m['cores']} cores, {threads} for every program, f32; commit {result['commit']}; "
              f"innerloop {versions['innerloop']}, Python {versions['python']}, {listed}.{note}"), "",
        prose(
            "One second-order MAML meta-step, losses and exact meta-gradient, by SGD of one fixed rate, mean squared error, K "
            "support and K query rows for each of T tasks, S inner steps; no outer optimizer. A measurement is a process of its "
            "own: two meta-steps warm up, then the median of at least three, or of as many as ten times "
            f"{result['seconds']:g} s allow. The programs take turns, shape by shape, on the same cores. JAX is "
            "`jit(value_and_grad(mean(vmap(inner loop))))` with an unrolled loop, torch.func the same in eager PyTorch; "
            "learn2learn, higher and TorchOpt take task after task, as in their own examples."
        ), "",
    ]
    networks = []
    for row in result["rows"]:
        if row["network"] not in networks:
            networks.append(row["network"])
    for index, network in enumerate(networks):
        rows = [row for row in result["rows"] if row["network"] == network]
        lines += network_section(network, rows, programs, result, f"benchmarks-{index + 1}.svg")
    lines += largest_section(result, limit)
    lines += ["## The same results", "", prose(
        "Before it is timed each program's losses and meta-gradient, in f32, are held against ours in double precision "
        "(`innerloop grad`) on a problem of each network, S and K. The largest relative error of each:"), ""]
    errors = [(p, e) for p, e in result["relative_errors"].items() if e]
    lines += table(["program", "problems", "relative error"], [[p, str(len(e)), f"{max(e.values()):.1e}"] for p, e in errors])
    if result["absent"]:
        lines += [prose("Left out: " + "; ".join(f"{p} ({reason})" for p, reason in result["absent"].items()) + "."), ""]
    lines += [
        "## To make this page", "",
        "    cargo build --release",
        "    python3 -m venv VENV && VENV/bin/pip install numpy safetensors jax torch learn2learn higher torchopt",
        "    VENV/bin/python benches/peers/grid.py --innerloop target/release/innerloop --out benches/results/DATE-peers.json",
        f"    python3 benches/peers/page.py benches/results/DATE-peers.json    # here: {name}", "",
        prose(
            "`--networks`, `--tasks`, `--steps` and `--shots` set the grid, `--threads` and `--memory-limit` what a program may "
            "use. A library that is not there or whose results differ is left out, and named. learn2learn 0.2.0 brings C files "
            "that do not compile with Python 3.11: `cython -3 learn2learn/data/*.pyx` (with `cython<3`) in its unpacked source "
            "makes new ones. The comparison with JAX alone (`benches/peers/compare.py`) is another one: more rounds, the "
            "video GAN too, on a machine that does nothing else."
        ), "",
    ]
    return "\n".join(lines)


def main():
    if len(sys.argv) != 2:
        sys.exit("error: expected one argument, the JSON file that grid.py wrote")
    path = pathlib.Path(sys.argv[1])
    (DOCS / "benchmarks.md").write_text(page(json.loads(path.read_text()), path.name))


if __name__ == "__main__":
    main()
