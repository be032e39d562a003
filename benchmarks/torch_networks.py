"""Compare networks at full size with those of timm and torchvision: the same random weights, images and logits.

    python benchmarks/torch_networks.py FOLDER          (needs torch, timm and torchvision; writes 630 MiB)

Where they are not installed beside jax, `--part=write` runs there and `--part=compare` here, with the same FOLDER.
"""

import argparse
import functools
import pathlib

import numpy as np

CASES = {  # a name: our network, the library and its name of the network, (H, W) of images
    "vit_s16": ("vit_s16", "timm", "vit_small_patch16_224", ((224, 224), (160, 160), (320, 240))),
    "vit_b16": ("vit_b16", "torchvision", "vit_b_16", ((224, 224),)),
    "convnext_tiny": ("convnext_tiny", "timm", "convnext_tiny", ((224, 224), (160, 160))),
    "convnext_tiny_torchvision": ("convnext_tiny", "torchvision", "convnext_tiny", ((224, 224),)),
}
CLASSES = 1000


def images(height: int, width: int) -> np.ndarray:
    """Return two images of standard normal numbers, float32[2, 3, H, W]."""
    return np.random.RandomState(height).standard_normal((2, 3, height, width)).astype(np.float32)


def draw(network) -> None:
    """Draw every weight of a torch network, large enough that each has a part in the logits."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, values in network.named_parameters():
            if "pos" in name or "token" in name:
                values.normal_(0, 0.5)
            elif name.endswith("layer_scale") or (values.ndim == 1 and name.endswith(("weight", "gamma"))):
                values.uniform_(0.5, 1)
            elif values.ndim == 1:
                values.uniform_(-0.2, 0.2)
            else:
                values.normal_(0, values[0].numel() ** -0.5)


def write(folder: pathlib.Path) -> None:
    """Write the weights of each case, and torch's logits."""
    import timm
    import torch
    from safetensors.torch import save_file
    from timm.models.vision_transformer import checkpoint_filter_fn
    from torchvision import models

    print("torch", torch.__version__, "timm", timm.__version__)
    logits = {}
    for name, (_, library, theirs, sizes) in CASES.items():
        network = timm.create_model(theirs) if library == "timm" else getattr(models, theirs)()
        draw(network)
        save_file(network.state_dict(), folder / f"{name}.safetensors")
        for size in sizes:
            sized = network
            if theirs.startswith("vit_small") and size != sizes[0]:  # timm interpolates the position embeddings
                sized = timm.create_model(theirs, img_size=size)
                sized.load_state_dict(checkpoint_filter_fn(network.state_dict(), sized))
            with torch.no_grad():
                logits[f"{name} {size[0]} x {size[1]}"] = sized.eval()(torch.from_numpy(images(*size))).numpy()
    np.savez(folder / "logits.npz", **logits)


def compare(folder: pathlib.Path) -> None:
    """Load the weights into our networks, and print the largest difference of logits."""
    import jax

    from unimix_jax.models import init, networks, pretrained

    print("| network | images | largest logit | largest difference |\n| --- | --- | ---: | ---: |")
    with np.load(folder / "logits.npz") as expected:
        for name, (ours, library, theirs, sizes) in CASES.items():
            network = networks.build(ours, CLASSES)
            for height, width in sizes:
                first = init.initialise(network, (height, width, 3), seed=0)
                variables = pretrained.load(folder / f"{name}.safetensors", network, first)
                apply = jax.jit(functools.partial(network.apply, train=False))
                logits = np.asarray(apply(variables, images(height, width).transpose(0, 2, 3, 1)))
                right = expected[f"{name} {height} x {width}"]
                difference = np.abs(logits - right).max()
                print(
                    f"| `{ours}`, {library}'s `{theirs}` | {height} x {width} | {np.abs(right).max():.1f} | "
                    f"{difference:.1e} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--part", choices=("both", "write", "compare"), default="both")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.part != "compare":
        write(arguments.folder)
    if arguments.part != "write":
        compare(arguments.folder)


if __name__ == "__main__":
    main()
