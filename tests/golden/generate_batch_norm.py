#!/usr/bin/env python3
"""Writes the golden problems of batch normalisation over a task's rows: one supervised meta-step each, with its answer by
automatic differentiation in float64 (JAX), from the plain definitions.

    pip install jax safetensors && python tests/golden/generate_batch_norm.py

The layout of the files is that of src/problem.rs. A normalised layer is act((u - mean u) / sqrt(var u + epsilon) + b) with
u = a W^T, the mean and the biased variance over the rows of the pass; the inner loop does not move its b.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from generate import ACTIVATIONS, Draw, adam, mean_over_tasks, put, write

FOLDER = pathlib.Path(__file__).parent


def forward(layers, names, epsilons, x):
    for (w, b), name, epsilon in zip(layers, names, epsilons):
        u = x @ w.T
        if epsilon > 0:
            u = (u - u.mean(axis=0)) / jnp.sqrt(((u - u.mean(axis=0)) ** 2).mean(axis=0) + epsilon)
        x = ACTIVATIONS[name](u + b)
    return x


LOSSES = {
    "mse": lambda a, y: jnp.mean((a - y) ** 2),
    "cross_entropy": lambda a, y: -jnp.mean(jnp.sum(y * jax.nn.log_softmax(a), axis=-1)),
}


def problem(name, seed, widths, names, epsilons, algorithm, steps, rate=0.1, rates="shared", loss="mse", shape=(3, 5, 4),
            momentum=0.0, decay=0.0, optimizer="sgd", query_weights=None):
    draw, (tasks, shots, queries) = Draw(seed), shape
    theta = draw.network(widths)
    layers = len(names)
    rows = [draw.rows(tasks, k, w) for k in (shots, queries) for w in (widths[0], widths[-1])]
    if loss == "cross_entropy":
        for i in (1, 3):
            # One row a class, class after class.
            rows[i] = np.broadcast_to(np.eye(widths[-1])[np.arange(rows[i].shape[1]) % widths[-1]], rows[i].shape)
    if rates == "per_layer_per_step":
        phi = draw.rng.uniform(0.5, 1.5, (steps, layers)) * rate
    elif rates == "per_parameter":
        phi = jax.tree.map(lambda p: draw.rng.uniform(0.5, 1.5, p.shape) * rate, theta)
    else:
        phi = np.float64(rate)
    # Weights and biases that the inner loop moves.
    moves = [(algorithm != "anil" or l == layers - 1,) * 2 for l in range(layers)]
    moves = [(w, b and epsilons[l] == 0) for l, (w, b) in enumerate(moves)]
    betas, epsilon = (0.9, 0.99), 1e-3

    def rates_of(phi, s):
        if rates == "per_parameter":
            return phi
        of = (lambda l: phi[s, l]) if rates == "per_layer_per_step" else (lambda l: phi)
        return [(of(l), of(l)) for l in range(layers)]

    def loss_of(theta, x, y):
        return LOSSES[loss](forward(theta, names, epsilons, x), y)

    def adapted(theta, phi, x, y):
        """The parameters after 1, 2, ... steps."""
        zeros = jax.tree.map(jnp.zeros_like, theta)
        moments, velocity, after = (zeros, zeros), zeros, []
        for s in range(steps):
            g = jax.grad(loss_of)(theta, x, y)
            if algorithm == "fomaml":
                g = jax.lax.stop_gradient(g)
            if optimizer == "adam":
                theta, moments = adam(theta, g, moments, rates_of(phi, s), s + 1, betas, epsilon, moves)
            else:
                velocity = jax.tree.map(lambda v, g, p: momentum * v + g + decay * p, velocity, g, theta)
                step = lambda p, v, rate, moves: p - rate * v if moves else p
                theta = jax.tree.map(step, theta, velocity, rates_of(phi, s), moves)
            after.append(theta)
        return after

    weights = query_weights or [0.0] * (steps - 1) + [1.0]

    def task(theta, phi, sx, sy, qx, qy):
        return [loss_of(end, qx, qy) for end in adapted(theta, phi, sx, sy)]

    def weighted(theta, phi, *r):
        return sum(w * l for w, l in zip(weights, task(theta, phi, *r)))

    tensors = {}
    put(tensors, "layers", theta)
    for key, value in zip(("support.x", "support.y", "query.x", "query.y"), rows):
        tensors[key] = value
    losses = jnp.stack([task(theta, phi, *(r[t] for r in rows))[-1] for t in range(tasks)])
    tensors["expected.loss"], tensors["expected.task_loss"] = jnp.mean(losses)[None], losses
    if algorithm == "reptile":
        ends = [adapted(theta, phi, rows[0][t], rows[1][t])[-1] for t in range(tasks)]
        gradient = jax.tree.map(lambda p, *ends: p - sum(ends) / tasks, theta, *ends)
    else:
        meta = lambda theta, phi: mean_over_tasks(lambda *r: weighted(theta, phi, *r), rows)
        gradient, phi_gradient = jax.grad(meta, argnums=(0, 1))(theta, phi)
        if rates == "per_layer_per_step":
            tensors["rates"], tensors["expected.rates_grad"] = phi, phi_gradient
        elif rates == "per_parameter":
            put(tensors, "rates", phi)
            put(tensors, "expected.rates_grad", phi_gradient)
    put(tensors, "expected.grad", gradient)
    metadata = {
        "problem": "supervised", "algorithm": algorithm, "activations": ",".join(names), "loss": loss,
        "inner_steps": steps, "inner_lr": rate, "rates": rates, "inner_optimizer": optimizer,
        "batch_norm": ",".join(str(epsilon) for epsilon in epsilons),
    }
    if optimizer == "adam":
        metadata |= {"beta1": betas[0], "beta2": betas[1], "epsilon": epsilon}
    else:
        metadata |= {"momentum": momentum, "weight_decay": decay}
    if query_weights:
        metadata["query_weights"] = ",".join(str(w) for w in query_weights)
    write(FOLDER / f"{name}.safetensors", tensors, metadata)


RELU, TANH = (["relu", "relu", "linear"], ["tanh", "tanh", "linear"])
ALL = [1e-3, 1e-3, 0.0]

problem("batch_norm_maml_1step", 1, [7, 6, 5, 3], RELU, ALL, "maml", 1)
problem("batch_norm_maml_3step", 2, [7, 6, 5, 3], RELU, ALL, "maml", 3)
problem("batch_norm_tanh", 3, [4, 9, 6, 2], TANH, [1e-3, 1e-2, 0.0], "maml", 3)
problem("batch_norm_fomaml", 4, [7, 6, 5, 3], RELU, ALL, "fomaml", 3)
problem("batch_norm_anil", 5, [6, 8, 5, 3], TANH, ALL, "anil", 3)
problem("batch_norm_reptile", 6, [6, 8, 5, 3], RELU, ALL, "reptile", 4)
problem("batch_norm_rates", 7, [5, 7, 6, 3], ["tanh", "leaky_relu", "linear"], ALL, "maml", 3, rates="per_layer_per_step")
problem("batch_norm_momentum_decay", 8, [5, 7, 6, 3], ["sigmoid", "relu", "linear"], ALL, "maml", 3,
        rates="per_layer_per_step", momentum=0.6, decay=0.2)
problem("batch_norm_decay_reptile", 9, [5, 7, 6, 3], TANH, ALL, "reptile", 3, decay=0.3)
problem("batch_norm_one_layer_multi_step", 10, [5, 7, 6, 3], TANH, [0.0, 1e-3, 0.0], "maml", 3, query_weights=[0.2, 0.3, 0.5])
problem("batch_norm_5_way_1_shot", 11, [16, 12, 8, 5], RELU, ALL, "maml", 2, rate=0.4, loss="cross_entropy", shape=(4, 5, 5))
problem("meta_sgd_batch_norm", 12, [5, 7, 6, 3], ["sigmoid", "relu", "linear"], ALL, "maml", 3, rates="per_parameter")
problem("adam_batch_norm", 13, [5, 7, 6, 3], TANH, ALL, "maml", 3, rate=0.05, optimizer="adam", rates="per_layer_per_step")
