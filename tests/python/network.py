"""The other side of tests/pytorch.rs: networks through `safetensors`, run by PyTorch where it is installed, by NumPy elsewhere.

    network.py run FILE PREFIX ACTIVATIONS   reads `x` from FILE.x, runs the network of FILE under PREFIX, writes `y` to FILE.y
    network.py make FILE PREFIX ACTIVATIONS WIDTHS   writes a random network to FILE, `x` to FILE.x and its answer to FILE.y

ACTIVATIONS is one name a layer, WIDTHS inputs, hidden and outputs, each a comma-separated list.
"""

import pathlib
import sys

import numpy as np

try:
    import torch
    from safetensors.torch import load_file, save_file
except ImportError:
    torch = None
    from safetensors.numpy import load_file, save_file


def linear_names(prefix, activations):
    """The places of the Linear layers in an nn.Sequential."""
    place, names = 0, []
    for activation in activations:
        names.append(f"{prefix}.{place}" if prefix else str(place))
        place += 1 if activation == "linear" else 2
    return names


def run_in_numpy(tensors, prefix, activations, x):
    act = {
        "linear": lambda z: z,
        "relu": lambda z: np.maximum(z, 0),
        "leaky_relu": lambda z: np.where(z > 0, z, 0.2 * z),
        "tanh": np.tanh,
        "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    }
    a = x.astype(np.float64)
    for name, activation in zip(linear_names(prefix, activations), activations):
        a = act[activation](a @ tensors[f"{name}.weight"].astype(np.float64).T + tensors[f"{name}.bias"])
    return a.astype(np.float32)


def run_in_torch(tensors, prefix, activations, x):
    nn = torch.nn
    kinds = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
    layers = []
    for name, activation in zip(linear_names(prefix, activations), activations):
        outputs, inputs = tensors[f"{name}.weight"].shape
        layers.append(nn.Linear(inputs, outputs))
        if activation != "linear":
            layers.append(kinds[activation]())
    module = nn.Sequential(*layers)
    dot = f"{prefix}." if prefix else ""
    module.load_state_dict({k[len(dot):]: v for k, v in tensors.items() if k.startswith(dot)}, strict=bool(prefix))
    with torch.no_grad():
        return module(x).contiguous()


def main():
    command, path, prefix, activations = sys.argv[1:5]
    activations, path = activations.split(","), pathlib.Path(path)
    run = run_in_torch if torch else run_in_numpy
    if command == "make":
        rng = np.random.default_rng(5)
        widths = [int(width) for width in sys.argv[5].split(",")]
        tensors = {}
        for name, inputs, outputs in zip(linear_names(prefix, activations), widths, widths[1:]):
            tensors[f"{name}.weight"] = rng.normal(size=(outputs, inputs)).astype(np.float32)
            tensors[f"{name}.bias"] = rng.normal(size=outputs).astype(np.float32)
        x = {"x": rng.normal(size=(6, widths[0])).astype(np.float32)}
        if torch:
            tensors, x = ({k: torch.from_numpy(v) for k, v in d.items()} for d in (tensors, x))
        save_file(tensors, path)
        save_file(x, f"{path}.x")
    tensors, x = load_file(path), load_file(f"{path}.x")["x"]
    save_file({"y": run(tensors, prefix, activations, x)}, f"{path}.y")
    print("PyTorch" if torch else "NumPy")


main()
