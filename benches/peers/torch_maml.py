#!/usr/bin/env python3
"""The meta-step of `innerloop bench`, as PyTorch and the libraries upon it do it.

    python torch_maml.py --library functional --tasks 16,64 --steps 1,5
    python torch_maml.py --library higher --check tests/golden/maml_mse_5step.safetensors

`functional` is torch.func: grad_and_value(mean over tasks of vmap(inner loop)). The others take task after task, as their
own examples do: learn2learn and higher go backwards after each task, TorchOpt once through all of them.
"""

import sys

import measuring

LIBRARIES = {"functional": "torch", "learn2learn": "learn2learn", "higher": "higher", "torchopt": "torchopt"}


def arguments():
    parser = measuring.parser(__doc__)
    parser.add_argument("--library", choices=LIBRARIES, default="functional")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--compile", action="store_true", help="torch.compile with CUDA graphs (functional)")
    return parser.parse_args()


def functional(torch, layers, compare, rate, steps):
    """(parameters, rows) -> (task losses, gradients); `layers` holds an activation a layer."""
    from torch.func import grad, grad_and_value, vmap

    def apply(parameters, x):
        for (w, b), activation in zip(parameters, layers):
            x = activation(torch.nn.functional.linear(x, w, b))
        return x

    def task(parameters, sx, sy, qx, qy):
        gradient = grad(lambda p: compare(apply(p, sx), sy))
        for _ in range(steps):
            change = gradient(parameters)
            parameters = [
                tuple(p - rate * g for p, g in zip(layer, changes)) for layer, changes in zip(parameters, change)
            ]
        return compare(apply(parameters, qx), qy)

    def meta(parameters, *rows):
        losses = vmap(task, in_dims=(None, 0, 0, 0, 0))(parameters, *rows)
        return losses.mean(), losses

    gradient = grad_and_value(meta, has_aux=True)

    def step(parameters, rows):
        gradients, (_, losses) = gradient(parameters, *rows)
        return losses, gradients

    return step


def by_module(torch, layers, compare, step_of):
    """The same for a library that works on modules: `step_of(model)` gives `rows -> task losses`, which leaves the sum of the
    tasks' gradients in the model's parameters."""

    class Activated(torch.nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.activation = activation

        def forward(self, x):
            return self.activation(x)

    made = None

    def make(parameters):
        modules = []
        for (w, b), activation in zip(parameters, layers):
            linear = torch.nn.Linear(w.shape[1], w.shape[0], dtype=w.dtype)
            linear.weight.data, linear.bias.data = w, b
            modules += [linear, Activated(activation)]
        model = torch.nn.Sequential(*modules)
        return model, step_of(model, compare)

    def step(parameters, rows):
        nonlocal made
        made = made or make(parameters)
        model, run = made
        model.zero_grad()
        losses = run(list(zip(*rows)))
        tasks = len(losses)
        gradients = [p.grad / tasks for p in model.parameters()]
        return torch.stack(losses), list(zip(gradients[::2], gradients[1::2]))

    return step


def learn2learn(rate, steps):
    import learn2learn as l2l

    def step_of(model, compare):
        maml = l2l.algorithms.MAML(model, lr=rate)

        def run(tasks):
            losses = []
            for sx, sy, qx, qy in tasks:
                learner = maml.clone()
                for _ in range(steps):
                    learner.adapt(compare(learner(sx), sy))
                loss = compare(learner(qx), qy)
                loss.backward()
                losses.append(loss.detach())
            return losses

        return run

    return step_of


def higher(torch, rate, steps):
    from higher import innerloop_ctx

    def step_of(model, compare):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)

        def run(tasks):
            losses = []
            for sx, sy, qx, qy in tasks:
                with innerloop_ctx(model, optimizer, copy_initial_weights=False) as (adapted, inner):
                    for _ in range(steps):
                        inner.step(compare(adapted(sx), sy))
                    loss = compare(adapted(qx), qy)
                    loss.backward()
                    losses.append(loss.detach())
            return losses

        return run

    return step_of


def torchopt(torch, rate, steps):
    import torchopt as opt

    def step_of(model, compare):
        inner = opt.MetaSGD(model, lr=rate)

        def run(tasks):
            network, state = (opt.extract_state_dict(of, by="reference") for of in (model, inner))
            losses = []
            for sx, sy, qx, qy in tasks:
                for _ in range(steps):
                    inner.step(compare(model(sx), sy))
                losses.append(compare(model(qx), qy))
                opt.recover_state_dict(model, network)
                opt.recover_state_dict(inner, state)
            torch.stack(losses).sum().backward()
            return [loss.detach() for loss in losses]

        return run

    return step_of


def meta_step(args, names, loss, rate, steps):
    import torch

    torch.set_num_threads(len(measuring.cores()))
    activations = {
        "linear": lambda z: z, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
        "leaky_relu": lambda z: torch.nn.functional.leaky_relu(z, 0.2),
    }
    compare = {
        "mse": torch.nn.functional.mse_loss,
        "bce_with_logits": torch.nn.functional.binary_cross_entropy_with_logits,
        # On one-hot targets.
        "cross_entropy": torch.nn.functional.cross_entropy,
    }[loss]
    layers = [activations[name] for name in names]
    if args.library == "functional":
        return torch, functional(torch, layers, compare, rate, steps)
    library = learn2learn(rate, steps) if args.library == "learn2learn" else globals()[args.library](torch, rate, steps)
    return torch, by_module(torch, layers, compare, library)


def measure(args):
    import importlib.metadata

    torch, step = meta_step(args, measuring.activations(args), "mse", 0.01, args.steps[0])
    (arrays,), rows = measuring.random_data(args)
    torch.set_float32_matmul_precision("high")
    place = lambda values: torch.from_numpy(values).to(args.device)
    parameters = [tuple(map(place, layer)) for layer in arrays]
    rows = [place(values) for values in rows]
    if args.compile:
        step = torch.compile(step, mode="reduce-overhead", fullgraph=True)
    on_gpu = args.device != "cpu"

    def timed_step():
        step(parameters, rows)
        if on_gpu:
            torch.cuda.synchronize()

    measured = measuring.timed(timed_step, args.seconds, measuring.peak_memory_mb())
    if on_gpu:
        measured |= {"gpu": torch.cuda.get_device_name(), "gpu_memory_mb": torch.cuda.max_memory_allocated() / 1e6}
    versions = {name: importlib.metadata.version(name) for name in {"torch", LIBRARIES[args.library]}}
    return {"library": args.library, "compiled": args.compile, **measured, "versions": versions}


def check(args, fields, tensors):
    """The answers to a problem file, by name; None for what is not done here."""
    known = {"problem": "supervised", "algorithm": "maml", "rates": "shared", "inner_optimizer": "sgd"}
    if any(fields.get(name, value) != value for name, value in known.items()) or "query_weights" in fields:
        return None
    if float(fields.get("momentum", 0)) or float(fields.get("weight_decay", 0)):
        return None
    names = fields["activations"].split(",")
    torch, step = meta_step(args, names, fields["loss"], float(fields["inner_lr"]), int(fields["inner_steps"]))
    kind = torch.float32 if args.precision == "f32" else torch.float64
    of = lambda name: torch.from_numpy(tensors[name]).to(kind)
    parameters = [(of(f"layers.{i}.weight"), of(f"layers.{i}.bias")) for i in range(len(names))]
    losses, gradients = step(parameters, [of(name) for name in ("support.x", "support.y", "query.x", "query.y")])
    answers = {"loss": losses.mean()[None].numpy(), "task_loss": losses.numpy()}
    for i, (w, b) in enumerate(gradients):
        answers[f"grad.{i}.weight"], answers[f"grad.{i}.bias"] = w.numpy(), b.numpy()
    return answers


def main():
    args = arguments()
    return measuring.main(args, lambda: measure(args), lambda *problem: check(args, *problem))


if __name__ == "__main__":
    sys.exit(main())
