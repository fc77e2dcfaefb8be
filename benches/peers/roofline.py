#!/usr/bin/env python3
"""A roofline picture of a run of gpu.py. Standard library only.

    python3 roofline.py benches/results/DATE-gpu.json benches/results/DATE-gpu.svg
"""

import json
import math
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 480, 70, 20, 20, 50
X, Y = (1.0, 4096.0), (0.5, 1200.0)


def across(intensity):
    return LEFT + (WIDTH - LEFT - RIGHT) * math.log(intensity / X[0]) / math.log(X[1] / X[0])


def down(tflops):
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(tflops / Y[0]) / math.log(Y[1] / Y[0])


def points(record):
    """Name, flop a byte, flop a second, whether it is a peer's."""
    for row in record["products"]["rows"]:
        rows, inputs, outputs = row["shape"]
        flop = 2 * rows * inputs * outputs
        # Operands of 16 bits, read once, and an output of 32 (ours) or 16 (cuBLAS's) written once.
        read, written = 2 * inputs * (rows + outputs), rows * outputs
        name = f"layer {rows} x {inputs} x {outputs}"
        if "median_ms" in row["innerloop"]:
            # Rows are read in 32 bits and packed, too.
            moved = read + 4 * written + 6 * rows * inputs
            yield name, flop / moved, flop / row["innerloop"]["median_ms"] * 1e3, False
        yield f"cuBLAS {rows} x {inputs} x {outputs}", flop / (read + 2 * written), flop / row["cublas_ms"] * 1e3, True
    for row in record["rows"]:
        for precision, result in list(row["innerloop"].items())[:1]:
            if row.get("bytes") and "median_ms" in result:
                rate = result["flop"] / result["median_ms"] * 1e3
                yield f"{row['network']}, T = {row['tasks']}, {precision}", result["flop"] / row["bytes"], rate, False


def main():
    source, to = sys.argv[1:]
    with open(source) as file:
        record = json.load(file)
    memory = record["products"]["copied_bytes_per_second"]
    peak = max(2 * math.prod(row["shape"]) / row["cublas_ms"] * 1e3 for row in record["products"]["rows"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    line = lambda x1, y1, x2, y2, color: parts.append(
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'
    )
    text = lambda x, y, words, anchor="middle", color="#333": parts.append(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{words}</text>'
    )
    for power in range(0, 13, 2):
        line(across(2**power), TOP, across(2**power), HEIGHT - BOTTOM, "#eee")
        text(across(2**power), HEIGHT - BOTTOM + 15, 2**power)
    for rate in (1, 10, 100, 1000):
        line(LEFT, down(rate), WIDTH - RIGHT, down(rate), "#eee")
        text(LEFT - 8, down(rate) + 4, rate, "end")
    text((LEFT + WIDTH) / 2, HEIGHT - 12, "flop a byte of memory traffic")
    parts.append(f'<text transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle" fill="#333">Tflop/s</text>')
    ridge = peak / memory
    line(across(X[0]), down(memory * X[0] / 1e12), across(ridge), down(peak / 1e12), "#555")
    line(across(ridge), down(peak / 1e12), across(X[1]), down(peak / 1e12), "#555")
    text(across(3), down(memory * 3 / 1e12) - 22, f"copy: {memory / 1e12:.2f} TB/s")
    text(across(1500), down(peak / 1e12) - 6, f"cuBLAS: {peak / 1e12:.0f} Tflop/s")
    for number, (name, intensity, rate, peer) in enumerate(points(record), 1):
        x, y, color = across(intensity), down(rate / 1e12), "#999" if peer else "#c33"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
        text(x + 5, y + 10, number, "start", color)
        # What is what, where no point can be.
        text(across(100), down(50) + 14 * number, f"{number}  {name}: {rate / 1e12:.0f} Tflop/s", "start", color)
    text(LEFT + 8, TOP + 12, f"{record['gpu']}, {record['date']}", "start")
    with open(to, "w") as file:
        file.write("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
