#!/usr/bin/env python3
"""Writes the golden problems of the inner Adam optimizer and of the texture term: one meta-step each, with its answer by automatic
differentiation in float64 (JAX), from the plain definitions.

    pip install jax safetensors && python tests/golden/generate.py tests/golden

The layout of the files is that of src/problem.rs. The update is optax.adam(rate, b1, b2, eps) with eps_root = 0, written
out; only its root is taken by `root` below, whose derivative at 0 is 0: there optax would answer NaN.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

jax.config.update("jax_enable_x64", True)

ACTIVATIONS = {
    "linear": lambda z: z,
    # From the left at 0.
    "relu": lambda z: jnp.where(z > 0, z, 0.0),
    "leaky_relu": lambda z: jnp.where(z > 0, z, 0.2 * z),
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def apply(layers, names, x):
    for (w, b), name in zip(layers, names):
        x = ACTIVATIONS[name](x @ w.T + b)
    return x


def root(v):
    return jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1.0)), 0.0)


def adam(parameters, gradients, moments, rates, step, betas, epsilon, moves):
    """One step; `rates` has the parameters' structure, `step` counts from 1, `moves` says which leaves move."""
    b1, b2 = betas
    tree = jax.tree.map
    first = tree(lambda m, g: b1 * m + (1 - b1) * g, moments[0], gradients)
    second = tree(lambda v, g: b2 * v + (1 - b2) * g**2, moments[1], gradients)

    def leaf(theta, m, v, rate, moves):
        change = rate * (m / (1 - b1**step)) / (root(v / (1 - b2**step)) + epsilon)
        return theta - change if moves else theta

    return tree(leaf, parameters, first, second, rates, moves), (first, second)


def adapt(gradient, theta, rates_of, steps, betas, epsilon, moves, first_order):
    zeros = jax.tree.map(jnp.zeros_like, theta)
    moments = (zeros, zeros)
    for s in range(steps):
        g = gradient(theta)
        if first_order:
            g = jax.lax.stop_gradient(g)
        theta, moments = adam(theta, g, moments, rates_of(s), s + 1, betas, epsilon, moves)
    return theta


class Draw:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def network(self, widths):
        uniform = lambda inputs, *shape: self.rng.uniform(-1, 1, shape) * np.sqrt(3 / inputs)
        return [(uniform(i, o, i), uniform(i, o) * 0.3) for i, o in zip(widths, widths[1:])]

    def rows(self, *shape):
        return self.rng.normal(size=shape)


def put(tensors, prefix, layers):
    for i, (w, b) in enumerate(layers):
        tensors[f"{prefix}.{i}.weight"] = w
        tensors[f"{prefix}.{i}.bias"] = b


def write(path, tensors, metadata):
    arrays = {name: np.ascontiguousarray(value, dtype=np.float64) for name, value in tensors.items()}
    assert all(np.isfinite(a).all() for a in arrays.values()), path
    save_file(arrays, path, {name: str(value) for name, value in metadata.items()})


def mean_over_tasks(f, rows):
    return jnp.mean(jnp.stack([f(*(r[t] for r in rows)) for t in range(len(rows[0]))]))


def supervised(path, seed, widths, names, algorithm, rates="shared", rate=0.05, epsilon=1e-8, betas=(0.9, 0.999), steps=3,
               zero_input=False):
    draw, tasks, shots, queries = Draw(seed), 3, 5, 4
    theta = draw.network(widths)
    rows = [draw.rows(tasks, k, w) for k in (shots, queries) for w in (widths[0], widths[-1])]
    if zero_input:
        # The first weight column has no gradient in any support set, but in the query sets.
        rows[0][..., 0] = 0.0
    layers = len(names)
    if rates == "per_layer_per_step":
        phi = draw.rng.uniform(0.5, 1.5, (steps, layers)) * rate
    elif rates == "per_parameter":
        phi = jax.tree.map(lambda p: draw.rng.uniform(0.5, 1.5, p.shape) * rate, theta)
    else:
        phi = np.float64(rate)

    def rates_of(phi, s):
        if rates == "per_parameter":
            return phi
        of = (lambda l: phi[s, l]) if rates == "per_layer_per_step" else (lambda l: phi)
        return [(of(l), of(l)) for l in range(layers)]

    moves = [(algorithm != "anil" or l == layers - 1,) * 2 for l in range(layers)]
    loss = lambda p, x, y: jnp.mean((apply(p, names, x) - y) ** 2)

    def adapted(theta, phi, x, y):
        gradient = jax.grad(lambda p: loss(p, x, y))
        return adapt(gradient, theta, lambda s: rates_of(phi, s), steps, betas, epsilon, moves, algorithm == "fomaml")

    def task(theta, phi, sx, sy, qx, qy):
        return loss(adapted(theta, phi, sx, sy), qx, qy)

    tensors = {}
    put(tensors, "layers", theta)
    for name, value in zip(("support.x", "support.y", "query.x", "query.y"), rows):
        tensors[name] = value
    losses = jnp.stack([task(theta, phi, *(r[t] for r in rows)) for t in range(tasks)])
    tensors["expected.loss"], tensors["expected.task_loss"] = jnp.mean(losses)[None], losses
    if algorithm == "reptile":
        ends = [adapted(theta, phi, rows[0][t], rows[1][t]) for t in range(tasks)]
        gradient = jax.tree.map(lambda p, *ends: p - sum(ends) / tasks, theta, *ends)
    else:
        meta = lambda theta, phi: mean_over_tasks(lambda *r: task(theta, phi, *r), rows)
        gradient, phi_gradient = jax.grad(meta, argnums=(0, 1))(theta, phi)
        if rates == "per_layer_per_step":
            tensors["rates"], tensors["expected.rates_grad"] = phi, phi_gradient
        elif rates == "per_parameter":
            put(tensors, "rates", phi)
            put(tensors, "expected.rates_grad", phi_gradient)
    put(tensors, "expected.grad", gradient)
    write(path, tensors, {
        "problem": "supervised", "algorithm": algorithm, "activations": ",".join(names), "loss": "mse",
        "inner_steps": steps, "inner_lr": rate, "rates": rates, "inner_optimizer": "adam",
        "beta1": betas[0], "beta2": betas[1], "epsilon": epsilon,
    })


def gan(path, seed, algorithm, rates=(0.02, 0.03), epsilon=1e-3, betas=(0.8, 0.99), steps=3):
    draw, tasks, shots, queries, frames = Draw(seed), 3, 3, 2, 3
    g_names, d_names = ["relu", "tanh"], ["leaky_relu", "linear"]
    theta = [draw.network([5, 7, 9]), draw.network([9, 11, 1])]
    weights = (0.7, 1.0, 0.5)
    rows = [draw.rows(tasks, k, w) for k in (shots, queries) for w in (9, 5)]
    rows[0], rows[2] = np.tanh(rows[0]), np.tanh(rows[2])
    softplus = jax.nn.softplus

    def d_loss(g, d, x, z):
        fake = apply(g, g_names, z)
        return jnp.mean(softplus(-apply(d, d_names, x))) + jnp.mean(softplus(apply(d, d_names, fake)))

    def g_loss(g, d, x, z):
        fake = apply(g, g_names, z)
        motion = lambda clip: jnp.diff(clip.reshape(len(clip), frames, -1), axis=1)
        return (weights[0] * jnp.mean(softplus(-apply(d, d_names, fake))) + weights[1] * jnp.mean((fake - x) ** 2)
                + weights[2] * jnp.mean((motion(fake) - motion(x)) ** 2))

    def joint(theta, x, z):
        g, d = theta
        return [jax.grad(g_loss, 0)(g, d, x, z), jax.grad(d_loss, 1)(g, d, x, z)]

    constant = [jax.tree.map(lambda _: rate, player) for rate, player in zip(rates, theta)]
    moves = jax.tree.map(lambda _: True, theta)

    def adapted(theta, x, z):
        return adapt(lambda p: joint(p, x, z), theta, lambda s: constant, steps, betas, epsilon, moves, False)

    tensors, g_losses, d_losses, gradients = {}, [], [], []
    put(tensors, "generator", theta[0])
    put(tensors, "discriminator", theta[1])
    for name, value in zip(("support.x", "support.z", "query.x", "query.z"), rows):
        tensors[name] = value
    for t in range(tasks):
        sx, sz, qx, qz = (r[t] for r in rows)
        end, pull_back = jax.vjp(lambda theta: adapted(theta, sx, sz), theta)
        g_losses.append(g_loss(*end, qx, qz))
        d_losses.append(d_loss(*end, qx, qz))
        direction = joint(end, qx, qz)
        if algorithm == "maml":
            (direction,) = pull_back(direction)
        elif algorithm == "reptile":
            direction = jax.tree.map(lambda a, b: a - b, theta, end)
        gradients.append(direction)
    mean = jax.tree.map(lambda *g: sum(g) / tasks, *gradients)
    tensors["expected.generator_loss"] = jnp.stack(g_losses)
    tensors["expected.discriminator_loss"] = jnp.stack(d_losses)
    put(tensors, "expected.generator.grad", mean[0])
    put(tensors, "expected.discriminator.grad", mean[1])
    write(path, tensors, {
        "problem": "gan", "algorithm": algorithm, "generator_activations": ",".join(g_names),
        "discriminator_activations": ",".join(d_names), "inner_steps": steps, "generator_lr": rates[0],
        "discriminator_lr": rates[1], "frames": frames, "adversarial_weight": weights[0],
        "reconstruction_weight": weights[1], "motion_weight": weights[2], "inner_optimizer": "adam",
        "beta1": betas[0], "beta2": betas[1], "epsilon": epsilon,
    })


def textured_gan(path, seed, algorithm, rates=(0.2, 0.1), steps=3):
    """Plain SGD steps of both players; the generator's loss has a texture term: spatial gradients, by their definition."""
    draw, tasks, shots, queries = Draw(seed), 2, 3, 2
    frames, height, width, channels = shape = (2, 4, 3, 2)
    clip = int(np.prod(shape))
    g_names, d_names = ["tanh", "tanh"], ["tanh", "linear"]
    theta = [draw.network([5, 7, clip]), draw.network([clip, 6, 1])]
    adversarial, reconstruction, motion, texture = weights = (0.3, 1.0, 0.5, 0.8)
    rows = [draw.rows(tasks, k, w) for k in (shots, queries) for w in (clip, 5)]
    rows[0], rows[2] = np.tanh(rows[0]), np.tanh(rows[2])
    softplus = jax.nn.softplus

    def d_loss(g, d, x, z):
        return jnp.mean(softplus(-apply(d, d_names, x))) + jnp.mean(softplus(apply(d, d_names, apply(g, g_names, z))))

    def g_loss(g, d, x, z):
        fake = apply(g, g_names, z)
        error = (fake - x).reshape(-1, *shape)
        in_time, across, along = (jnp.mean(jnp.diff(error, axis=axis) ** 2) for axis in (1, 2, 3))
        return (adversarial * jnp.mean(softplus(-apply(d, d_names, fake))) + reconstruction * jnp.mean(error**2)
                + motion * in_time + texture * (across + along))

    def joint(theta, x, z):
        return [jax.grad(g_loss, 0)(*theta, x, z), jax.grad(d_loss, 1)(*theta, x, z)]

    def adapted(theta, x, z):
        for _ in range(steps):
            gradients = joint(theta, x, z)
            theta = [jax.tree.map(lambda p, g: p - rate * g, *player) for rate, *player in zip(rates, theta, gradients)]
        return theta

    tensors, g_losses, d_losses, gradients = {}, [], [], []
    put(tensors, "generator", theta[0])
    put(tensors, "discriminator", theta[1])
    for name, value in zip(("support.x", "support.z", "query.x", "query.z"), rows):
        tensors[name] = value
    for sx, sz, qx, qz in zip(*rows):
        end, pull_back = jax.vjp(lambda theta: adapted(theta, sx, sz), theta)
        g_losses.append(g_loss(*end, qx, qz))
        d_losses.append(d_loss(*end, qx, qz))
        direction = joint(end, qx, qz)
        gradients.append(pull_back(direction)[0] if algorithm == "maml" else direction)
    mean = jax.tree.map(lambda *g: sum(g) / tasks, *gradients)
    tensors["expected.generator_loss"] = jnp.stack(g_losses)
    tensors["expected.discriminator_loss"] = jnp.stack(d_losses)
    put(tensors, "expected.generator.grad", mean[0])
    put(tensors, "expected.discriminator.grad", mean[1])
    names = ("adversarial_weight", "reconstruction_weight", "motion_weight", "texture_weight")
    write(path, tensors, {
        "problem": "gan", "algorithm": algorithm, "generator_activations": ",".join(g_names),
        "discriminator_activations": ",".join(d_names), "inner_steps": steps, "generator_lr": rates[0],
        "discriminator_lr": rates[1], "frames": frames, "frame_height": height, "frame_width": width,
        "channels": channels, **dict(zip(names, weights)),
    })


def main():
    folder = Path(sys.argv[1])
    at = lambda name: folder / f"{name}.safetensors"
    smooth, kinked = ["tanh", "sigmoid", "linear"], ["relu", "leaky_relu", "linear"]
    supervised(at("adam_maml_smooth"), 1, [3, 7, 5, 2], smooth, "maml", epsilon=1e-3)
    supervised(at("adam_maml_relu"), 2, [3, 9, 7, 1], kinked, "maml", zero_input=True)
    supervised(at("adam_maml_per_layer_per_step_rates"), 3, [3, 7, 5, 2], smooth, "maml", "per_layer_per_step",
               epsilon=1e-2, betas=(0.8, 0.95))
    supervised(at("adam_maml_per_parameter_rates"), 4, [3, 7, 1], ["tanh", "linear"], "maml", "per_parameter",
               epsilon=1e-2)
    supervised(at("adam_fomaml_per_layer_per_step_rates"), 5, [3, 7, 5, 2], kinked, "fomaml", "per_layer_per_step")
    supervised(at("adam_anil"), 6, [3, 7, 5, 2], smooth, "anil", epsilon=1e-3)
    supervised(at("adam_reptile"), 7, [3, 7, 5, 2], kinked, "reptile")
    gan(at("adam_gan_maml"), 8, "maml")
    gan(at("adam_gan_fomaml"), 9, "fomaml")
    gan(at("adam_gan_reptile"), 10, "reptile")
    textured_gan(at("gan_texture_maml"), 11, "maml")
    textured_gan(at("gan_texture_fomaml"), 12, "fomaml")


if __name__ == "__main__":
    main()
