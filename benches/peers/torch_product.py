#!/usr/bin/env python3
"""What a GPU reaches at best, through PyTorch: a copy, and cuBLAS's products in bf16 without an end, of random numbers.

    python torch_product.py --shapes 8192,4096,4096 4096,512,4096
"""

import argparse
import json
import statistics


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["8192,4096,4096", "4096,512,4096"], help="rows,inputs,outputs")
    args = parser.parse_args()
    import torch

    def milliseconds(work, count=20):
        for _ in range(3):
            work()
        times = []
        for _ in range(5):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(count):
                work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / count)
        return statistics.median(times)

    copied = torch.empty(1 << 30, device="cuda", dtype=torch.uint8).random_()
    to = torch.empty_like(copied)
    rate = 2 * copied.numel() / milliseconds(lambda: to.copy_(copied), 5) * 1e3
    record = {"gpu": torch.cuda.get_device_name(), "copied_bytes_per_second": rate}
    print(f"copy: {rate / 1e12:.2f} TB/s read and written")
    print(json.dumps(record))
    for shape in args.shapes:
        rows, inputs, outputs = map(int, shape.split(","))
        make = lambda *size: torch.randn(*size, device="cuda").bfloat16()
        # Several, so that none stays in the cache from one to the next.
        sets = [(make(rows, inputs), make(outputs, inputs), make(rows, outputs)) for _ in range(4)]
        turn = iter(range(1 << 30))

        def product():
            x, w, out = sets[next(turn) % len(sets)]
            torch.mm(x, w.t(), out=out)

        time = milliseconds(product)
        flop = 2 * rows * inputs * outputs
        print(f"{rows} rows, {inputs} to {outputs}: {time * 1e3:.1f} us, {flop / time / 1e9:.1f} TFLOP/s")
        shape = {"rows": rows, "inputs": inputs, "outputs": outputs}
        print(json.dumps({**record, **shape, "median_ms": time, "flop_per_second": flop / time * 1e3}))


if __name__ == "__main__":
    main()
