"""The worker of `train_step.py` that runs the same step written with plain PyTorch operators.

Variants: default (NCHW), channels_last, compiled (torch.compile), compiled_channels_last.
"""

import argparse
import contextlib
import time

import slots

BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet50": (3, 4, 6, 3)}  # of photographs; the others are CIFAR's


def main():
    parser = argparse.ArgumentParser()
    slots.add_case(parser)
    parser.add_argument("--variant", default="channels_last")
    case = parser.parse_args()
    slots.pin(case.threads)

    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    layout = torch.channels_last if "channels_last" in case.variant else torch.contiguous_format

    class Unit(nn.Module):
        """Convolutions with normalisation, and a shortcut: a basic block, or a bottleneck."""

        def __init__(self, inputs, features, stride, bottleneck, projected):
            super().__init__()
            outputs = 4 * features if bottleneck else features
            layers = [(inputs, features, 3, stride), (features, features, 3, 1)]
            if bottleneck:
                layers = [(inputs, features, 1, 1), (features, features, 3, stride), (features, outputs, 1, 1)]
            self.convolutions = nn.ModuleList(nn.Conv2d(a, b, s, t, s // 2, bias=False) for a, b, s, t in layers)
            self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in layers)
            self.stride, self.missing, self.projection = stride, outputs - inputs, None
            if projected and (stride > 1 or self.missing):
                self.projection = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def shortcut(self, x):
            if self.projection is not None:
                return self.projection(x)
            if self.stride == 1 and not self.missing:
                return x
            half = self.missing // 2
            return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.missing - half))

        def forward(self, x):
            y = x
            for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
                y = norm(convolution(y))
                y = F.relu(y) if i < len(self.norms) - 1 else y
            return F.relu(y + self.shortcut(x))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            photographs = case.network in BLOCKS
            if photographs:
                blocks, features = BLOCKS[case.network], 64
                stem = nn.Conv2d(case.channels, 64, 7, 2, 3, bias=False)
            else:
                blocks, features = ((int(case.network.removeprefix("resnet")) - 2) // 6,) * 3, 16
                stem = nn.Conv2d(case.channels, 16, 3, 1, 1, bias=False)
            layers = [stem, nn.BatchNorm2d(features), nn.ReLU()]
            layers += [nn.MaxPool2d(3, 2, 1)] if photographs else []
            inputs, bottleneck = features, case.network == "resnet50"
            for stage, count in enumerate(blocks):
                for i in range(count):
                    stride = 2 if stage and not i else 1
                    layers.append(Unit(inputs, features << stage, stride, bottleneck, photographs))
                    inputs = (features << stage) * (4 if bottleneck else 1)
            self.body, self.head = nn.Sequential(*layers), nn.Linear(inputs, case.classes)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

    network = ResNet().to(memory_format=layout)
    for module in network.modules():  # as the networks here begin
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)
    counts = torch.tensor(slots.counts(case.classes), dtype=torch.float32)
    shift = torch.log(counts / counts.sum()) + np.log(case.classes)
    mean = torch.full((1, case.channels, 1, 1), 0.47)
    std = torch.full((1, case.channels, 1, 1), 0.25)
    beta = torch.distributions.Beta(0.5, 0.5)
    generator = torch.Generator().manual_seed(0)
    pad, size = 4, case.size

    def pixels(images):
        images = images.permute(0, 3, 1, 2)
        if case.what == "augmented":
            count = len(images)
            images = F.pad(images, (pad, pad, pad, pad))
            rows, columns = (
                torch.randint(0, 2 * pad + 1, (count, 1), generator=generator) + torch.arange(size) for _ in range(2)
            )
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
            images = images.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None]]
            images = images.permute(0, 3, 1, 2)
        return ((images.float() / 255 - mean) / std).contiguous(memory_format=layout)

    def forward(x, label_a, label_b, factor):
        logits = network(x)
        shifted = logits + shift
        losses = factor * F.cross_entropy(shifted, label_a, reduction="none")
        losses = losses + (1 - factor) * F.cross_entropy(shifted, label_b, reduction="none")
        hits = logits.argmax(1) == torch.where(factor >= 0.5, label_a, label_b)
        return losses.mean(), hits.sum()

    forward = torch.compile(forward) if case.variant.startswith("compiled") else forward
    predict = torch.compile(network) if case.variant.startswith("compiled") else network

    def train(images, labels):
        label_a, label_b = labels
        count_a, count_b = counts[label_a], counts[label_b]
        place = beta.sample((case.batch,)) + count_b / (count_a + count_b)
        factor = torch.where(place > 1, place - 1, place)
        share = factor[:, None, None, None]
        x = share * pixels(images[0]) + (1 - share) * pixels(images[1])
        loss, _ = forward(x, label_a, label_b, factor)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.detach()

    random = np.random.default_rng(0)

    def batch():
        images = random.integers(0, 256, (2, case.batch, size, size, case.channels), dtype=np.uint8)
        labels = random.integers(0, case.classes, (2, case.batch))
        return torch.from_numpy(images), torch.from_numpy(labels)

    batches = [batch() for _ in range(4)]
    evaluating = case.what == "evaluate"
    network.train(not evaluating)

    def run(count):
        with torch.inference_mode() if evaluating else contextlib.nullcontext():
            for i in range(count):
                images, labels = batches[i % 4]
                value = predict(pixels(images[0])).mean() if evaluating else train(images, labels)
        return float(value)

    begun = time.perf_counter()
    run(1)
    seconds = time.perf_counter() - begun
    run(1)
    slots.serve(run, compile_seconds=seconds, torch=torch.__version__)


if __name__ == "__main__":
    main()
