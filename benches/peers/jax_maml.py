#!/usr/bin/env python3
"""The meta-step of `innerloop bench`, as JAX does it: jit(value_and_grad(mean over tasks of vmap(inner loop))).

Needs jax only (and safetensors for --check). Runs on whatever device JAX finds. Every measurement is a process of its
own, so that its peak memory (VmHWM) is its own.

    python jax_maml.py --tasks 16,64 --steps 1,5 --json
    python jax_maml.py --widths 1,40,40,1 --activations relu,relu,linear --tasks 25 --shots 10 --queries 10
    python jax_maml.py --widths 272,256,512,2048 --discriminator-widths 512,256 --tasks 16 --steps 5
    python jax_maml.py --check tests/golden/maml_mse_5step.safetensors
"""

import sys

import measuring


def arguments():
    parser = measuring.parser(__doc__)
    parser.add_argument("--discriminator-widths", type=measuring.numbers, help="makes it the video GAN: its hidden widths")
    parser.add_argument("--frames", type=int, default=8, help="frames in a clip, for the video GAN")
    parser.add_argument("--algorithm", choices=["maml", "fomaml", "anil"], default="maml")
    parser.add_argument("--loss", choices=["mse", "bce_with_logits", "cross_entropy"], default="mse")
    parser.add_argument("--learn-rates", action="store_true", help="also the gradient of the [steps, layers] rates")
    parser.add_argument("--loop", choices=["unroll", "scan"], default="unroll", help="how the inner loop is written")
    return parser.parse_args()


def model(precision):
    """Everything that needs JAX, imported late: the parent of the measurements never starts it."""
    import jax
    import jax.numpy as jnp

    if precision == "f64":
        jax.config.update("jax_enable_x64", True)

    activations = {
        "linear": lambda z: z,
        "relu": jax.nn.relu,
        # Not jax.nn.leaky_relu, whose derivative at 0 is taken from the right.
        "leaky_relu": lambda z: jnp.where(z > 0, z, 0.2 * z),
        "tanh": jnp.tanh,
        "sigmoid": jax.nn.sigmoid,
    }

    def mlp(names):
        def apply(layers, x):
            for (w, b), name in zip(layers, names):
                x = activations[name](x @ w.T + b)
            return x

        return apply

    def loss_of(name):
        return {
            "mse": lambda p, y: jnp.mean((p - y) ** 2),
            "bce_with_logits": lambda p, y: jnp.mean(jax.nn.softplus(p) - y * p),
            "cross_entropy": lambda p, y: -jnp.mean(jnp.sum(y * jax.nn.log_softmax(p), axis=-1)),
        }[name]

    def inner_loop(gradient, parameters, rates, steps, loop, algorithm, momentum=0.0):
        """`steps` steps of gradient descent; `rates` is a list over networks of [steps, layers]."""

        def step(carry, rates):
            (at, velocity) = carry
            g = gradient(at)
            if algorithm == "fomaml":
                g = jax.lax.stop_gradient(g)
            if momentum:
                g = jax.tree.map(lambda v, g: momentum * v + g, velocity, g)
            at = [
                [jax.tree.map(lambda w, d: w - rate[i] * d, layer, d)
                 if algorithm != "anil" or i == len(network) - 1 else layer
                 for i, (layer, d) in enumerate(zip(network, change))]
                for network, change, rate in zip(at, g, rates)
            ]
            return (at, g if momentum else velocity), None

        carry = (parameters, jax.tree.map(jnp.zeros_like, parameters) if momentum else None)
        if loop == "scan":
            carry, _ = jax.lax.scan(step, carry, rates)
        else:
            for s in range(steps):
                carry, _ = step(carry, [r[s] for r in rates])
        return carry[0]

    def supervised(names, loss, steps, algorithm="maml", loop="unroll", learn_rates=False, momentum=0.0):
        """(parameters, rates, sx, sy, qx, qy) -> ((loss, task losses), gradient[, rates' gradient])."""
        apply, compare = mlp(names), loss_of(loss)

        def task(parameters, rates, sx, sy, qx, qy):
            gradient = jax.grad(lambda p: compare(apply(p[0], sx), sy))
            adapted = inner_loop(gradient, parameters, rates, steps, loop, algorithm, momentum)
            return compare(apply(adapted[0], qx), qy)

        def meta(parameters, rates, *rows):
            losses = jax.vmap(lambda *rows: task(parameters, rates, *rows))(*rows)
            return jnp.mean(losses), losses

        return jax.jit(jax.value_and_grad(meta, argnums=(0, 1) if learn_rates else 0, has_aux=True))

    def video(names, critic_names, frames, weights, steps, algorithm="maml", loop="unroll", learn_rates=False):
        """(parameters, rates, sz, sx, qz, qx) -> ((_, (generator losses, discriminator losses)), gradients)."""
        generate, judge = mlp(names), mlp(critic_names)
        adversarial, reconstruction, motion = weights

        def generator_loss(g, d, z, x):
            fake = generate(g, z)
            difference = (fake - x).reshape(len(x), frames, -1)
            return (
                adversarial * jnp.mean(jax.nn.softplus(-judge(d, fake)))
                + reconstruction * jnp.mean(difference**2)
                + motion * jnp.mean((difference[:, 1:] - difference[:, :-1]) ** 2)
            )

        def discriminator_loss(g, d, z, x):
            return jnp.mean(jax.nn.softplus(-judge(d, x))) + jnp.mean(jax.nn.softplus(judge(d, generate(g, z))))

        def both(p, z, x):
            """Each player's loss, with a gradient to its own parameters only."""
            hold = jax.lax.stop_gradient
            return generator_loss(p[0], hold(p[1]), z, x), discriminator_loss(hold(p[0]), p[1], z, x)

        def task(parameters, rates, sz, sx, qz, qx):
            def gradient(p):
                own = jax.grad(generator_loss, argnums=0)(*p, sz, sx)
                return [own, jax.grad(discriminator_loss, argnums=1)(*p, sz, sx)]

            return both(inner_loop(gradient, parameters, rates, steps, loop, algorithm), qz, qx)

        def meta(parameters, rates, *rows):
            losses = jax.vmap(lambda *rows: task(parameters, rates, *rows))(*rows)
            return jnp.mean(losses[0]) + jnp.mean(losses[1]), losses

        return jax.jit(jax.value_and_grad(meta, argnums=(0, 1) if learn_rates else 0, has_aux=True))

    return jax, jnp, supervised, video


def measure(args):
    """One measurement, in this process: a dictionary."""
    jax, jnp, supervised, video = model(args.precision)
    import numpy as np

    kind = np.float32 if args.precision == "f32" else np.float64
    steps = args.steps[0]
    names = measuring.activations(args)
    networks = [args.widths]
    if args.discriminator_widths:
        networks.append([args.widths[-1], *args.discriminator_widths, 1])
        critic = ["leaky_relu"] * len(args.discriminator_widths) + ["linear"]
        weights = (0.1, 1.0, 1.0)
        step = video(names, critic, args.frames, weights, steps, args.algorithm, args.loop, args.learn_rates)
    else:
        step = supervised(names, args.loss, steps, args.algorithm, args.loop, args.learn_rates)
    parameters, rows = jax.tree.map(jnp.asarray, measuring.random_data(args, networks))
    rates = [jnp.full((steps, len(widths) - 1), 0.01, kind) for widths in networks]
    before = measuring.peak_memory_mb()
    measured = measuring.timed(lambda: jax.block_until_ready(step(parameters, rates, *rows)), args.seconds, before)
    # Of a GPU; a CPU's devices keep no account.
    held = jax.devices()[0].memory_stats() or {}
    measured |= {"gpu_memory_mb": held["peak_bytes_in_use"] / 1e6} if "peak_bytes_in_use" in held else {}
    return {
        "discriminator_widths": args.discriminator_widths, "algorithm": args.algorithm, "loop": args.loop,
        "learn_rates": args.learn_rates, **measured, "device": jax.devices()[0].device_kind, "jax": jax.__version__,
    }


def check(args, fields, tensors):
    """The answers to a problem file, by name; None for what is not done here."""
    jax, jnp, supervised, video = model(args.precision)
    import numpy as np

    kind = np.float32 if args.precision == "f32" else np.float64
    if fields["algorithm"] == "reptile" or fields.get("rates", "shared") not in ("shared", "per_layer_per_step"):
        return None
    if fields.get("inner_optimizer", "sgd") != "sgd" or {"query_weights", "texture_weight"} & fields.keys():
        return None
    if float(fields.get("weight_decay", 0)):
        return None
    of = lambda name: jnp.asarray(tensors[name].astype(kind))
    steps = int(fields["inner_steps"])

    def network(prefix, names):
        return [(of(f"{prefix}.{i}.weight"), of(f"{prefix}.{i}.bias")) for i in range(len(names))]

    def uniform(field, names):
        return jnp.full((steps, len(names)), float(fields[field]), kind)

    if fields["problem"] == "gan":
        g = fields["generator_activations"].split(",")
        d = fields["discriminator_activations"].split(",")
        weights = [float(fields[f"{name}_weight"]) for name in ("adversarial", "reconstruction", "motion")]
        step = video(g, d, int(fields["frames"]), weights, steps, fields["algorithm"], args.loop)
        rows = [of(name) for name in ("support.z", "support.x", "query.z", "query.x")]
        parameters = [network("generator", g), network("discriminator", d)]
        rates = [uniform("generator_lr", g), uniform("discriminator_lr", d)]
        (_, losses), gradients = step(parameters, rates, *rows)
        answers = {"generator_loss": losses[0], "discriminator_loss": losses[1]}
        prefixes = ["generator.grad", "discriminator.grad"]
    else:
        names = fields["activations"].split(",")
        learned = fields["rates"] == "per_layer_per_step"
        momentum = float(fields["momentum"])
        step = supervised(names, fields["loss"], steps, fields["algorithm"], args.loop, learned, momentum)
        rows = [of(name) for name in ("support.x", "support.y", "query.x", "query.y")]
        rates = [of("rates") if learned else uniform("inner_lr", names)]
        (loss, losses), gradients = step([network("layers", names)], rates, *rows)
        answers = {"loss": loss[None], "task_loss": losses}
        if learned:
            gradients, rates = gradients
            answers["rates_grad"] = rates[0]
        prefixes = ["grad"]
    for prefix, gradient in zip(prefixes, gradients):
        for i, (w, b) in enumerate(gradient):
            answers[f"{prefix}.{i}.weight"], answers[f"{prefix}.{i}.bias"] = w, b
    return answers


def main():
    args = arguments()
    return measuring.main(args, lambda: measure(args), lambda *problem: check(args, *problem))


if __name__ == "__main__":
    sys.exit(main())
