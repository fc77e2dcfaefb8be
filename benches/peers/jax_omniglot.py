#!/usr/bin/env python3
"""`examples/omniglot.rs` by JAX alone: the same network, steps and split; another program, other random numbers.

    pip install jax pillow && python jax_omniglot.py --data FOLDER --shots 1,5 --seed 0,1,2 --out jax-omniglot.json

Writes OUT: what the example's --beside reads.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

WIDTHS = [784, 256, 128, 64, 64]
EPSILON = 1e-3
DRAWINGS, TASKS, JUDGED, AT_ONCE, STEPS = 20, 32, 600, 50, 10


def arguments():
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds images_background_small1 and images_background_small2")
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=numbers, default=[1])
    parser.add_argument("--inner-rate", type=float, default=0.4)
    parser.add_argument("--meta-steps", type=int, default=1000)
    parser.add_argument("--seed", type=numbers, default=[0])
    parser.add_argument("--out", type=Path, default=Path("jax-omniglot.json"))
    return parser.parse_args()


def read(folder):
    """[characters, 20 drawings, 4 rotations, 784], ink 1."""

    def drawing(path):
        small = Image.open(path).convert("L").resize((28, 28), Image.LANCZOS)
        return 1.0 - np.asarray(small, dtype=np.float32) / 255.0

    characters = sorted(path for path in folder.glob("*/*") if path.is_dir())
    images = np.stack([[drawing(path) for path in sorted(character.glob("*.png"))] for character in characters])
    turned = [np.rot90(images, turns, axes=(2, 3)) for turns in range(4)]
    return jnp.asarray(np.stack(turned, axis=2).reshape(*images.shape[:2], 4, 784))


def network(parameters, x):
    weights, shifts, bias = parameters["weights"], parameters["shifts"], parameters["bias"]
    for w, shift in zip(weights, shifts):
        u = x @ w.T
        x = jax.nn.relu((u - u.mean(0)) / jnp.sqrt(u.var(0) + EPSILON) + shift)
    return x @ weights[-1].T + bias


def loss(parameters, x, y):
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(network(parameters, x)), axis=-1))


def step(parameters, x, y, rate):
    gradient = jax.grad(loss)(parameters, x, y)
    moved = jax.tree.map(lambda p, g: p - rate * g, parameters, gradient)
    return {**moved, "shifts": parameters["shifts"]}


def episodes(images, key, tasks, ways, shots):
    """Support x and y, query x and y, [tasks, rows, .]: as many queries as shots, each character turned its own way."""

    def one(key):
        keys = jax.random.split(key, 3)
        characters = jax.random.permutation(keys[0], images.shape[0])[:ways]
        turns = jax.random.randint(keys[1], (ways,), 0, 4)
        drawings = jax.vmap(lambda key: jax.random.permutation(key, DRAWINGS)[: 2 * shots])(jax.random.split(keys[2], ways))
        return images[characters[:, None], drawings, turns[:, None]]

    x = jax.vmap(one)(jax.random.split(key, tasks))
    y = jnp.broadcast_to(jnp.eye(ways)[:, None], (tasks, ways, shots, ways)).reshape(tasks, ways * shots, ways)
    rows = lambda x: x.reshape(tasks, ways * shots, 784)
    return rows(x[:, :, :shots]), y, rows(x[:, :, shots:]), y


def initial(key, ways):
    pairs = list(zip(WIDTHS, WIDTHS[1:] + [ways]))
    normal = lambda key, shape: 0.01 * jax.random.truncated_normal(key, -2.0, 2.0, shape)
    weights = [normal(key, (o, i)) for key, (i, o) in zip(jax.random.split(key, len(pairs)), pairs)]
    return {"weights": weights, "shifts": [jnp.zeros(w) for w in WIDTHS[1:]], "bias": jnp.zeros(ways)}


def experiment(train_images, test_images, ways, shots, rate, meta_steps):
    """seed -> what a run came to."""

    def meta_loss(parameters, rows):
        task = lambda sx, sy, qx, qy: loss(step(parameters, sx, sy, rate), qx, qy)
        return jax.vmap(task)(*rows).mean()

    def meta_step(state, key):
        parameters, first, second, count = state
        gradient = jax.grad(meta_loss)(parameters, episodes(train_images, key, TASKS, ways, shots))
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        move = lambda p, m, v: p - 1e-3 * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)
        return (jax.tree.map(move, parameters, first, second), first, second, count), None

    train = jax.jit(lambda state, keys: jax.lax.scan(meta_step, state, keys)[0])

    @jax.jit
    def judge(parameters, key):
        """[episodes, steps + 1]"""

        def task(sx, sy, qx, qy):
            adapted, right = parameters, []
            for s in range(STEPS + 1):
                right.append(jnp.mean(network(adapted, qx).argmax(-1) == qy.argmax(-1)))
                adapted = step(adapted, sx, sy, rate) if s < STEPS else adapted
            return jnp.stack(right)

        return jax.vmap(task)(*episodes(test_images, key, AT_ONCE, ways, shots))

    def run(seed):
        start, course, judged = jax.random.split(jax.random.key(seed), 3)
        parameters = initial(start, ways)
        zeros = jax.tree.map(jnp.zeros_like, parameters)
        state = (parameters, zeros, zeros, jnp.float32(0))
        keys = jax.random.split(course, meta_steps)
        compiled = train.lower(state, keys).compile()
        began = time.perf_counter()
        state = jax.block_until_ready(compiled(state, keys))
        seconds = time.perf_counter() - began
        keys = jax.random.split(judged, JUDGED // AT_ONCE)
        right = np.concatenate([judge(state[0], key) for key in keys])
        margins = 1.96 * right.std(0, ddof=1) / len(right) ** 0.5
        accuracies = [{"mean": float(m), "margin": float(e)} for m, e in zip(right.mean(0), margins)]
        return {"seed": seed, "shots": shots, "milliseconds": 1e3 * seconds / meta_steps, "accuracies": accuracies}

    return run


def main():
    args = arguments()
    train_images, test_images = (read(args.data / f"images_background_small{i}") for i in (1, 2))
    runs = []
    for shots in args.shots:
        run = experiment(train_images, test_images, args.ways, shots, args.inner_rate, args.meta_steps)
        for seed in args.seed:
            runs.append(run(seed))
            told = {"ways": args.ways, "inner_rate": args.inner_rate, "meta_steps": args.meta_steps, "runs": runs}
            args.out.write_text(json.dumps(told, indent=1) + "\n")
            print(f"{shots} shots, seed {seed}:", {**runs[-1], "accuracies": runs[-1]["accuracies"][:4]}, flush=True)


if __name__ == "__main__":
    main()
