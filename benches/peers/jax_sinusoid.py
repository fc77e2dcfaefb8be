#!/usr/bin/env python3
"""The MAML rows of `examples/sinusoid.rs`, by JAX alone: another program, other random numbers, the same experiment.

    python jax_sinusoid.py --seed 0,1,2 [--meta-steps 70000]
"""

import argparse
import math

import measuring
from jax_maml import model

NAMES = ["relu", "relu", "linear"]
WIDTHS = [1, 40, 40, 1]
JUDGED, POINTS, DIVERGED = 600, 100, 100.0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta-steps", type=int, default=70_000)
    parser.add_argument("--seed", type=measuring.numbers, default=[0])
    return parser.parse_args()


def experiment(jax, jnp, supervised, meta_steps):
    """seed -> by shots and inner steps: mean error of the tasks that have not diverged, its margin, how many have."""

    def draw(key, tasks, shots, queries):
        """Support x and y, query x and y: [tasks, rows, 1]."""
        keys = jax.random.split(key, 3)
        amplitude = jax.random.uniform(keys[0], (tasks, 1, 1), minval=0.1, maxval=5.0)
        phase = jax.random.uniform(keys[1], (tasks, 1, 1), maxval=math.pi)
        x = jax.random.uniform(keys[2], (tasks, shots + queries, 1), minval=-5.0, maxval=5.0)
        y = amplitude * jnp.sin(x - phase)
        return x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:]

    def rates(steps):
        return [jnp.full((steps, len(NAMES)), 0.01)]

    meta_gradient = supervised(NAMES, "mse", 1)

    def adam(state, keys):
        """A meta-step with Adam at 0.001, its state in the order parameters, moments, steps."""
        parameters, first, second, count = state
        _, gradient = meta_gradient(parameters, rates(1), *draw(keys, 25, 10, 10))
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        step = lambda p, m, v: p - 1e-3 * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)
        return (jax.tree.map(step, parameters, first, second), first, second, count), None

    train = jax.jit(lambda state, keys: jax.lax.scan(adam, state, keys)[0])

    def run(seed):
        start, course, judged = jax.random.split(jax.random.key(seed), 3)
        shapes = list(zip(WIDTHS, WIDTHS[1:]))
        normal = lambda key, shape: 0.01 * jax.random.truncated_normal(key, -2.0, 2.0, shape)
        keys = jax.random.split(start, len(shapes))
        parameters = [[(normal(key, (o, i)), jnp.zeros(o)) for key, (i, o) in zip(keys, shapes)]]
        zeros = jax.tree.map(jnp.zeros_like, parameters)
        state = (parameters, zeros, zeros, jnp.float32(0))
        state = train(state, jax.random.split(course, meta_steps))
        errors = {}
        for shots in (5, 10):
            rows = draw(judged, JUDGED, shots, POINTS)
            for steps in (0, 1, 5, 10):
                (_, losses), _ = supervised(NAMES, "mse", steps)(state[0], rates(steps), *rows)
                sound = losses[losses < DIVERGED]
                margin = 1.96 * float(sound.std(ddof=1)) / len(sound) ** 0.5
                errors[shots, steps] = float(sound.mean()), margin, JUDGED - len(sound)
        return errors

    return run


def main():
    args = arguments()
    jax, jnp, supervised, _ = model("f32")
    run = experiment(jax, jnp, supervised, args.meta_steps)
    print("| seed | shots | 0 | 1 | 5 | 10 | diverged |\n|---|---|---|---|---|---|---|")
    for seed in args.seed:
        errors = run(seed)
        for shots in (5, 10):
            cells = ["{:.3f} ±{:.3f}".format(*errors[shots, steps][:2]) for steps in (0, 1, 5, 10)]
            print(f"| {seed} | {shots} | {' | '.join(cells)} | {errors[shots, 10][2]} |", flush=True)


if __name__ == "__main__":
    main()
