"""Write torch_resnets.npz: logits of photographs' ResNets from plain torch, for weights drawn by name.

    python tests/golden/torch_resnets.py      (needs torch; with torchvision it compares with that, too)

The weights themselves are not stored: `state` draws them again, from the same names and shapes.
"""

import pathlib
import sys
import zlib

import numpy as np

NETWORKS = {  # blocks a stage, bottleneck, groups, width of a group
    "resnet10": ((1, 1, 1, 1), False, 1, 64),
    "resnet50": ((3, 4, 6, 3), True, 1, 64),
    "resnext50_32x4d": ((3, 4, 6, 3), True, 32, 4),
}
CLASSES = 7
IMAGES = np.random.RandomState(0).standard_normal((2, 3, 65, 96)).astype(np.float32)  # odd and even sides


def state(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw float32 values for PyTorch's names, of a size that keeps activations in range."""
    values = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(name.encode()))
        if len(shape) > 1:
            value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("running_var") or name.endswith("weight"):
            value = random.uniform(0.5, 1, shape)
        else:
            value = random.uniform(-0.2, 0.2, shape)
        values[name] = value.astype(np.float32)
    return values


def main():
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs, features, stride, bottleneck, groups, width):
            super().__init__()
            inner = features * width // 64 * groups if bottleneck else features
            outputs = 4 * features if bottleneck else features
            sizes = [(inputs, inner, 1, 1, 1), (inner, inner, 3, stride, groups), (inner, outputs, 1, 1, 1)]
            if not bottleneck:
                sizes = [(inputs, inner, 3, stride, 1), (inner, outputs, 3, 1, 1)]
            self.count = len(sizes)
            for i, (a, b, size, step, g) in enumerate(sizes, start=1):
                self.add_module(f"conv{i}", nn.Conv2d(a, b, size, step, size // 2, groups=g, bias=False))
                self.add_module(f"bn{i}", nn.BatchNorm2d(b))
            self.downsample = None
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x):
            y = x
            for i in range(1, self.count + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = torch.relu(y) if i < self.count else y
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet(nn.Module):
        def __init__(self, blocks, bottleneck, groups, width):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            self.pool, inputs = nn.MaxPool2d(3, 2, 1), 64
            for stage, count in enumerate(blocks):
                layer, features = [], 64 * 2**stage
                for i in range(count):
                    layer.append(Block(inputs, features, 2 if stage and not i else 1, bottleneck, groups, width))
                    inputs = 4 * features if bottleneck else features
                self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
            self.fc = nn.Linear(inputs, CLASSES)

        def forward(self, x):
            x = self.pool(torch.relu(self.bn1(self.conv1(x))))
            for stage in range(1, 5):
                x = getattr(self, f"layer{stage}")(x)
            return self.fc(x.mean((2, 3)))

    try:
        from torchvision import models
    except ImportError:
        models = None
    found = {}
    for name, about in NETWORKS.items():
        network = ResNet(*about)
        shapes = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
        weights = {k: torch.from_numpy(v) for k, v in state(shapes).items()}
        network.load_state_dict(weights, strict=False)
        network.double().eval()
        with torch.no_grad():
            images = torch.from_numpy(IMAGES).double()
            found[name] = network(images).numpy()
            if models is not None and hasattr(models, name):
                theirs = getattr(models, name)(num_classes=CLASSES)
                theirs.load_state_dict(weights, strict=False)
                difference = np.abs(theirs.double().eval()(images).numpy() - found[name]).max()
                print(name, "largest difference from torchvision", difference, file=sys.stderr)
                assert difference < 1e-9
            found[f"{name}_train"] = network.train()(images).numpy()
    np.savez(pathlib.Path(__file__).with_name("torch_resnets.npz"), **found)


if __name__ == "__main__":
    main()
