"""Writes the golden problems of the meta-optimizers that transform rows, of weight decay and of multi-step losses.

    pip install jax safetensors && python tests/golden/generate_phi.py

Every answer is JAX's automatic differentiation in float64 of the plain definitions below; nothing of the crate's own
algebra is used.
"""
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from generate import ACTIVATIONS

jax.config.update("jax_enable_x64", True)
FOLDER = pathlib.Path(__file__).parent


def draw_network(rng, widths):
    def layer(inputs, outputs):
        bound = 1.0 / np.sqrt(inputs)
        return rng.uniform(-bound, bound, (outputs, inputs)), rng.uniform(-bound, bound, outputs)

    return [layer(*pair) for pair in zip(widths, widths[1:])]


def forward(theta, activations, x, taps=None):
    """The output and every layer's input; `taps` are added to the pre-activations, so that their gradient is delta."""
    inputs = []
    for l, ((w, b), name) in enumerate(zip(theta, activations)):
        inputs.append(x)
        z = x @ w.T + b
        x = ACTIVATIONS[name](z if taps is None else z + taps[l])
    return x, inputs


def zero_taps(theta, rows):
    return [jnp.zeros((rows, w.shape[0])) for w, _ in theta]


# -- phi: row-column rates and the row-transforming network ----------------------------------------------------------------


def draw_phi(rng, kind, widths, steps, rank, rate):
    """Far from the identity, so that nothing hides."""
    layers = len(widths) - 1
    phi = {
        "rates": rate * rng.uniform(0.5, 1.5, (steps, layers)),
        "bias": rng.uniform(0.5, 1.5, (steps, layers)),
    }
    for l in range(layers):
        for side, width in (("delta", widths[l + 1]), ("values", widths[l])):
            name = f"{l}.{side}"
            phi[f"{name}.factors"] = rng.uniform(0.5, 1.5, (steps, width))
            if kind == "row_column":
                continue
            phi[f"{name}.down"] = rng.normal(0, 1 / np.sqrt(width), (rank, width))
            phi[f"{name}.scale"] = rng.uniform(0.5, 1.5, (steps, rank))
            phi[f"{name}.up"] = rng.normal(0, 0.5 / np.sqrt(rank), (width, rank))
            if side == "values":
                phi[f"{name}.down_bias"] = rng.normal(0, 0.3, rank)
                phi[f"{name}.up_bias"] = rng.normal(0, 0.3, width)
    return phi


def transform(phi, l, side, step, rows):
    name = f"{l}.{side}"
    scaled = rows * phi[f"{name}.factors"][step]
    if f"{name}.down" not in phi:
        return scaled
    hidden = rows @ phi[f"{name}.down"].T + phi.get(f"{name}.down_bias", 0.0)
    hidden = ACTIVATIONS["leaky_relu"](hidden * phi[f"{name}.scale"][step])
    return scaled + hidden @ phi[f"{name}.up"].T + phi.get(f"{name}.up_bias", 0.0)


def row_gradients(phi, step, deltas, inputs, constant):
    """The gradient that is descended, layer by layer, from the rows of the loss's own."""
    out = []
    for l, (delta, a) in enumerate(zip(deltas, inputs)):
        if constant:
            delta, a = jax.lax.stop_gradient(delta), jax.lax.stop_gradient(a)
        delta, a = transform(phi, l, "delta", step, delta), transform(phi, l, "values", step, a)
        out.append((delta.T @ a, phi["bias"][step, l] * delta.sum(0)))
    return out


def descend(phi, step, theta, gradient, velocity, momentum, decay, first=0):
    """`v <- momentum v + g + decay theta; theta <- theta - rate v`, for the layers from `first` on."""
    out, kept = [], []
    for l, ((w, b), (gw, gb), (vw, vb)) in enumerate(zip(theta, gradient, velocity)):
        if l < first:
            out.append((w, b))
            kept.append((vw, vb))
            continue
        vw, vb = momentum * vw + gw + decay * w, momentum * vb + gb + decay * b
        rate = phi["rates"][step, l]
        out.append((w - rate * vw, b - rate * vb))
        kept.append((vw, vb))
    return out, kept


def no_velocity(theta):
    return [(jnp.zeros_like(w), jnp.zeros_like(b)) for w, b in theta]


def named(prefix, theta):
    out = {}
    for l, (w, b) in enumerate(theta):
        out[f"{prefix}.{l}.weight"], out[f"{prefix}.{l}.bias"] = w, b
    return out


def write(name, tensors, metadata):
    arrays = {k: np.ascontiguousarray(np.asarray(v, dtype=np.float64)) for k, v in tensors.items()}
    save_file(arrays, str(FOLDER / f"{name}.safetensors"), metadata={k: str(v) for k, v in metadata.items()})


def supervised(name, seed, kind, algorithm, widths, activations, steps, rank=3, rate=0.3, momentum=0.0, decay=0.0,
               query_weights=None):
    rng = np.random.default_rng(seed)
    tasks, shots, queries = 3, 4, 5
    theta = draw_network(rng, widths)
    phi = draw_phi(rng, kind, widths, steps, rank, rate)
    rows = {
        f"{s}.{k}": rng.normal(0, 1, (tasks, n, width))
        for s, n in (("support", shots), ("query", queries))
        for k, width in (("x", widths[0]), ("y", widths[-1]))
    }
    first = len(widths) - 2 if algorithm == "anil" else 0

    def loss(theta, x, y, taps=None):
        prediction, inputs = forward(theta, activations, x, taps)
        return jnp.mean((prediction - y) ** 2), inputs

    def task_loss(theta, phi, sx, sy, qx, qy):
        """What is differentiated, and the loss at the adapted parameters."""
        velocity, total = no_velocity(theta), 0.0
        for step in range(steps):
            taps = zero_taps(theta, shots)
            deltas, inputs = jax.grad(lambda taps: loss(theta, sx, sy, taps), has_aux=True)(taps)
            gradient = row_gradients(phi, step, deltas, inputs, algorithm == "fomaml")
            theta, velocity = descend(phi, step, theta, gradient, velocity, momentum, decay, first)
            if query_weights is not None:
                total += query_weights[step] * loss(theta, qx, qy)[0]
        last = loss(theta, qx, qy)[0]
        return (last if query_weights is None else total), last

    def displacement(theta, sx, sy):
        start, velocity = theta, no_velocity(theta)
        for step in range(steps):
            deltas, inputs = jax.grad(lambda t: loss(theta, sx, sy, t), has_aux=True)(zero_taps(theta, shots))
            gradient = row_gradients(phi, step, deltas, inputs, False)
            theta, velocity = descend(phi, step, theta, gradient, velocity, momentum, decay)
        return jax.tree.map(lambda a, b: a - b, start, theta)

    batch = [rows[k] for k in ("support.x", "support.y", "query.x", "query.y")]
    each = jax.jit(jax.vmap(lambda theta, phi, *r: task_loss(theta, phi, *r), (None, None, 0, 0, 0, 0)))
    losses = each(theta, phi, *batch)[1]
    tensors = named("layers", theta) | rows | {f"phi.{k}": v for k, v in phi.items()}
    tensors |= {"expected.loss": losses.mean(keepdims=True), "expected.task_loss": losses}
    if algorithm == "reptile":
        gradient = jax.tree.map(
            lambda d: d.mean(0), jax.vmap(displacement, (None, 0, 0))(theta, batch[0], batch[1])
        )
    else:
        mean = lambda theta, phi: each(theta, phi, *batch)[0].mean()
        gradient, phi_gradient = jax.jit(jax.grad(mean, (0, 1)))(theta, phi)
        tensors |= {f"expected.phi_grad.{k}": v for k, v in phi_gradient.items()}
    tensors |= named("expected.grad", gradient)
    metadata = dict(problem="supervised", algorithm=algorithm, activations=",".join(activations), loss="mse",
                    inner_steps=steps, rates=kind, rank=rank, momentum=momentum, weight_decay=decay)
    write(name, tensors, metadata | weights_field(query_weights))


def weights_field(query_weights):
    return {} if query_weights is None else {"query_weights": ",".join(map(str, query_weights))}


def gan(name, seed, kind, algorithm, hidden, steps, rank=3, rate=0.2, momentum=0.0, decay=0.0, query_weights=None,
        fresh_noise=False):
    rng = np.random.default_rng(seed)
    tasks, shots, queries, frames, clip, latent = 3, 3, 2, 3, 15, 6
    adversarial, reconstruction, motion = 0.7, 1.3, 0.4
    widths = {"generator": [latent, 9, 7, clip], "discriminator": [clip, 8, 5, 1]}
    acts = {"generator": [hidden, hidden, "tanh"],
            "discriminator": ["leaky_relu" if hidden == "relu" else "tanh", "leaky_relu", "linear"]}
    theta = {k: draw_network(rng, w) for k, w in widths.items()}
    phi = {k: draw_phi(rng, kind, w, steps, rank, rate) for k, w in widths.items()}
    rows = {
        f"{s}.{k}": rng.uniform(-1, 1, (tasks, n, width))
        for s, n in (("support", shots), ("query", queries))
        for k, width in (("x", clip), ("z", latent))
    }
    if fresh_noise:
        rows["support.z"] = rng.uniform(-1, 1, (steps, tasks, shots, latent))

    def difference(f):
        return jnp.diff(f.reshape(f.shape[0], frames, -1), axis=1)

    def generator_loss(theta, x, z, taps=None):
        f, inputs = forward(theta["generator"], acts["generator"], z, taps)
        logits, _ = forward(theta["discriminator"], acts["discriminator"], f)
        value = adversarial * jnp.mean(jax.nn.softplus(-logits)) + reconstruction * jnp.mean((f - x) ** 2)
        return value + motion * jnp.mean((difference(f) - difference(x)) ** 2), inputs

    def discriminator_loss(theta, x, z, taps=None):
        f, _ = forward(theta["generator"], acts["generator"], z)
        logits, inputs = forward(theta["discriminator"], acts["discriminator"], jnp.concatenate([x, f]), taps)
        real, fake = logits[: len(x)], logits[len(x):]
        return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)), inputs

    losses = {"generator": generator_loss, "discriminator": discriminator_loss}

    def adapt(theta, phi, x, z, steps=steps):
        velocity = {k: no_velocity(v) for k, v in theta.items()}
        for step in range(steps):
            moved = {}
            for k, loss in losses.items():
                taps = zero_taps(theta[k], len(x) * (2 if k == "discriminator" else 1))
                own = z[step] if fresh_noise else z
                deltas, inputs = jax.grad(lambda taps: loss(theta, x, own, taps), has_aux=True)(taps)
                gradient = row_gradients(phi[k], step, deltas, inputs, algorithm == "fomaml")
                moved[k], velocity[k] = descend(phi[k], step, theta[k], gradient, velocity[k], momentum, decay)
            theta = moved
        return theta

    def pulled_back(theta, phi, sx, sz, qx, qz, steps):
        """The query losses after `steps` steps, and their gradients pulled back through these."""
        adapted = adapt(theta, phi, sx, sz, steps)
        values, cotangent = {}, {}
        for k, loss in losses.items():
            value, gradient = jax.value_and_grad(lambda own: loss({**adapted, k: own}, qx, qz)[0])(adapted[k])
            values[k], cotangent[k] = value, gradient
        _, pull = jax.vjp(lambda theta, phi: adapt(theta, phi, sx, sz, steps), theta, phi)
        return values, pull(cotangent)

    def weighted(*arguments):
        values, total = pulled_back(*arguments, steps)
        if algorithm == "reptile":
            theta, phi, sx, sz = arguments[:4]
            total = (jax.tree.map(lambda a, b: a - b, theta, adapt(theta, phi, sx, sz)), {})
        if query_weights is not None:
            each = [pulled_back(*arguments, s + 1)[1] for s in range(steps)]
            total = jax.tree.map(lambda *g: sum(w * x for w, x in zip(query_weights, g)), *each)
        return values, total

    batch = [rows[k] for k in ("support.x", "support.z", "query.x", "query.z")]
    values, gradients = jax.jit(jax.vmap(weighted, (None, None, 0, int(fresh_noise), 0, 0)))(theta, phi, *batch)
    gradient, phi_gradient = jax.tree.map(lambda g: g.mean(0), gradients)
    tensors = dict(rows)
    for k in losses:
        tensors |= named(k, theta[k]) | named(f"expected.{k}.grad", gradient[k])
        tensors |= {f"phi.{k}.{n}": v for n, v in phi[k].items()}
        tensors |= {f"expected.phi_grad.{k}.{n}": v for n, v in phi_gradient.get(k, {}).items()}
        tensors[f"expected.{k}_loss"] = values[k]
    metadata = dict(problem="gan", algorithm=algorithm, inner_steps=steps, rates=kind, rank=rank, momentum=momentum,
                    weight_decay=decay, frames=frames, adversarial_weight=adversarial,
                    reconstruction_weight=reconstruction, motion_weight=motion)
    metadata |= {f"{k}_activations": ",".join(a) for k, a in acts.items()}
    metadata |= {"fresh_noise": "true"} if fresh_noise else {}
    write(name, tensors, metadata | weights_field(query_weights))


def phi_problems():
    smooth, relu = ["tanh", "sigmoid", "linear"], ["relu", "leaky_relu", "linear"]
    supervised("row_column_maml_3step", 1, "row_column", "maml", [5, 9, 7, 3], smooth, 3)
    supervised("row_column_momentum_relu", 2, "row_column", "maml", [3, 11, 2], relu[1:], 3, momentum=0.6)
    supervised("row_column_fomaml", 3, "row_column", "fomaml", [5, 9, 7, 3], relu, 2)
    supervised("row_column_anil", 4, "row_column", "anil", [5, 9, 7, 3], smooth, 3)
    supervised("row_column_reptile", 5, "row_column", "reptile", [5, 9, 3], smooth[1:], 3)
    gan("gan_row_column", 6, "row_column", "maml", "tanh", 2)
    supervised("network_maml_3step", 7, "network", "maml", [5, 9, 7, 3], smooth, 3)
    supervised("network_momentum_relu", 8, "network", "maml", [3, 11, 2], relu[1:], 3, rank=2, momentum=0.6)
    supervised("network_fomaml", 9, "network", "fomaml", [5, 9, 7, 3], relu, 2)
    supervised("network_anil", 10, "network", "anil", [5, 9, 7, 3], smooth, 2, rank=4)
    gan("gan_network", 11, "network", "maml", "tanh", 3)
    gan("gan_network_relu_fomaml", 12, "network", "fomaml", "relu", 2, rank=2)


def decay_problems():
    smooth, relu = ["tanh", "sigmoid", "linear"], ["relu", "leaky_relu", "linear"]
    supervised("decay_row_column_momentum", 21, "row_column", "maml", [5, 9, 7, 3], smooth, 3, momentum=0.5, decay=0.3)
    supervised("decay_network_fomaml", 22, "network", "fomaml", [5, 9, 7, 3], relu, 3, momentum=0.4, decay=0.5)
    supervised("decay_row_column_anil", 23, "row_column", "anil", [5, 9, 7, 3], smooth, 2, decay=0.4)
    supervised("decay_row_column_reptile", 24, "row_column", "reptile", [5, 9, 3], smooth[1:], 3, decay=0.4)
    gan("decay_gan_network", 25, "network", "maml", "tanh", 2, rank=2, momentum=0.3, decay=0.2)


def multi_step_problems():
    smooth, relu = ["tanh", "sigmoid", "linear"], ["relu", "leaky_relu", "linear"]
    weights = [0.5, 0.2, 0.9]
    supervised("multi_step_row_column", 31, "row_column", "maml", [5, 9, 7, 3], smooth, 3, momentum=0.5,
               query_weights=weights)
    supervised("multi_step_network_decay", 32, "network", "maml", [5, 9, 7, 3], smooth, 3, momentum=0.4, decay=0.3,
               query_weights=weights)
    supervised("multi_step_fomaml_decay", 33, "row_column", "fomaml", [5, 9, 7, 3], relu, 3, decay=0.4,
               query_weights=weights)
    supervised("multi_step_anil", 34, "network", "anil", [5, 9, 7, 3], smooth, 3, query_weights=weights)
    gan("multi_step_gan", 35, "row_column", "maml", "tanh", 3, momentum=0.3, decay=0.2, query_weights=weights)
    gan("multi_step_gan_relu_fomaml", 36, "network", "fomaml", "relu", 2, rank=2, query_weights=weights[1:])


def fresh_noise_problems():
    gan("fresh_noise_gan", 41, "network", "maml", "tanh", 3, rank=2, momentum=0.3, fresh_noise=True)
    gan("fresh_noise_gan_relu_fomaml", 42, "row_column", "fomaml", "relu", 2, fresh_noise=True)
    gan("fresh_noise_gan_reptile", 43, "row_column", "reptile", "tanh", 4, decay=0.1, fresh_noise=True)


if __name__ == "__main__":
    phi_problems()
    decay_problems()
    multi_step_problems()
    fresh_noise_problems()
