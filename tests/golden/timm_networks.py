"""Write timm_networks.npz: logits of small ViTs and ConvNeXts of timm and torchvision, for weights drawn by name.

    python tests/golden/timm_networks.py      (needs torch, timm, torchvision)

The weights themselves are not stored, only their names and shapes: `torch_resnets.state` draws them from these.
"""

import pathlib

import numpy as np

try:
    from .torch_resnets import state
except ImportError:  # run as a script
    from torch_resnets import state

CLASSES = 7
WIDTH, DEPTH, HEADS, PATCH = 32, 2, 2, 4
BLOCKS, WIDTHS = (1, 1, 2, 1), (8, 16, 24, 32)
IMAGES = {  # NCHW
    "vit": np.random.RandomState(0).standard_normal((2, 3, 16, 16)).astype(np.float32),
    "vit_resampled": np.random.RandomState(1).standard_normal((2, 3, 12, 24)).astype(np.float32),  # less and more
    "convnext": np.random.RandomState(2).standard_normal((2, 3, 38, 65)).astype(np.float32),  # strides leave pixels
}


def weights(file: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return the weights of a network of the file by PyTorch's names."""
    shapes = zip(file[f"{name}_names"].tolist(), file[f"{name}_shapes"].tolist(), strict=True)
    return state({name: tuple(size for size in shape if size) for name, shape in shapes})


def main():
    import timm.models.vision_transformer
    import torch
    from timm.models import ConvNeXt, VisionTransformer
    from torchvision import models
    from torchvision.models.convnext import CNBlockConfig

    def vit(image_size):
        return VisionTransformer(image_size, PATCH, 3, CLASSES, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)

    stages = [CNBlockConfig(*s) for s in zip(WIDTHS, (*WIDTHS[1:], None), BLOCKS, strict=True)]
    networks = {
        "vit": vit(16),
        "convnext": ConvNeXt(num_classes=CLASSES, depths=BLOCKS, dims=WIDTHS),
        "torchvision_vit": models.VisionTransformer(16, PATCH, DEPTH, HEADS, WIDTH, 4 * WIDTH, num_classes=CLASSES),
        "torchvision_convnext": models.ConvNeXt(stages, num_classes=CLASSES),
    }
    arrays = {}

    def keep_logits(name, network):
        with torch.no_grad():
            images = torch.from_numpy(IMAGES[name.removeprefix("torchvision_")]).double()
            arrays[name] = network.double().eval()(images).numpy()

    for name, network in networks.items():
        shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
        arrays[f"{name}_names"] = np.array(list(shapes))
        arrays[f"{name}_shapes"] = np.array([shape + (0,) * (4 - len(shape)) for shape in shapes.values()], np.int16)
        network.load_state_dict({k: torch.from_numpy(v) for k, v in state(shapes).items()})
        if name == "vit":
            other = vit((12, 24))
            other.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(network.state_dict(), other))
            keep_logits("vit_resampled", other)
        keep_logits(name, network)
    np.savez_compressed(pathlib.Path(__file__).with_name("timm_networks.npz"), **arrays)


if __name__ == "__main__":
    main()
