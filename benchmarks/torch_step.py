"""The worker of `train_step.py` and `accelerator` that runs the same step written with plain PyTorch operators.

Variants: default (NCHW), channels_last, compiled (torch.compile), compiled_channels_last; on a GPU also graph and
graph_channels_last (the whole step is recorded into a CUDA graph once) and reduced and reduced_channels_last
(torch.compile in the mode reduce-overhead, which records its parts).
"""

import argparse
import contextlib
import functools
import time

import slots

BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet50": (3, 4, 6, 3)}  # of photographs; the others are CIFAR's


def recorded(torch, train, optimiser, batch):
    """Return a step that replays `train` as a CUDA graph, on a copy of its batch."""
    inputs = [part.clone() for part in batch]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # PyTorch asks for some steps on another stream before
        for _ in range(3):
            train(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    optimiser.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = train(*inputs)

    def replay(*batch):
        for part, new in zip(inputs, batch, strict=True):
            part.copy_(new)
        graph.replay()
        return loss

    return replay


def main():
    parser = argparse.ArgumentParser()
    slots.add_case(parser)
    parser.add_argument("--variant", default="channels_last")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cuda: images are there beforehand")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: by autocast")
    parser.add_argument("--tf32", default="yes", choices=("yes", "no"), help="whether float32 is multiplied in TF32")
    case = parser.parse_args()
    if case.variant.startswith(("graph", "reduced")) and case.device != "cuda":
        parser.error(f"the variant {case.variant} records a CUDA graph: it needs --device=cuda")
    slots.pin(case.threads)

    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    on = {"device": case.device}  # named everywhere: a default device would cost time in each call
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.tf32 == "yes"
    torch.backends.cudnn.benchmark = True  # measures which programs for convolutions are fastest; GPUs only
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

    network = ResNet().to(case.device, memory_format=layout)
    for module in network.modules():  # as the networks here begin
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)
    counts = torch.tensor(slots.counts(case.classes), dtype=torch.float32, **on)
    shift = torch.log(counts / counts.sum()) + np.log(case.classes)
    mean = torch.full((1, case.channels, 1, 1), 0.47, **on)
    std = torch.full((1, case.channels, 1, 1), 0.25, **on)
    pad, size = 4, case.size

    def pixels(images):
        images = images.permute(0, 3, 1, 2)
        if case.what == "augmented":
            count = len(images)
            images = F.pad(images, (pad, pad, pad, pad))
            places = torch.arange(size, **on)
            rows, columns = (torch.randint(0, 2 * pad + 1, (count, 1), **on) + places for _ in range(2))
            mirrored = torch.rand(count, 1, **on) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
            numbers = torch.arange(count, **on)[:, None, None]
            images = images.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None]]
            images = images.permute(0, 3, 1, 2)
        return ((images.float() / 255 - mean) / std).contiguous(memory_format=layout)

    def forward(x, label_a, label_b, factor):
        with torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bfloat16"):
            logits = network(x)
        logits = logits.float()
        shifted = logits + shift
        losses = factor * F.cross_entropy(shifted, label_a, reduction="none")
        losses = losses + (1 - factor) * F.cross_entropy(shifted, label_b, reduction="none")
        hits = logits.argmax(1) == torch.where(factor >= 0.5, label_a, label_b)
        return losses.mean(), hits.sum()

    predict = network
    if case.variant.startswith(("compiled", "reduced")):
        compiler = functools.partial(torch.compile, mode="reduce-overhead" if "reduced" in case.variant else None)
        forward, predict = compiler(forward), compiler(network)

    def train(images, labels):
        label_a, label_b = labels
        count_a, count_b = counts[label_a], counts[label_b]
        beta = torch.sin(np.pi / 2 * torch.rand(case.batch, **on)) ** 2  # of Beta(.5, .5), by what a graph can record
        place = beta + count_b / (count_a + count_b)
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
        return torch.from_numpy(images).to(case.device), torch.from_numpy(labels).to(case.device)

    batches = [batch() for _ in range(4)]
    evaluating = case.what == "evaluate"
    network.train(not evaluating)
    begun = time.perf_counter()
    train = recorded(torch, train, optimiser, batches[0]) if case.variant.startswith("graph") else train

    def run(count):
        with torch.inference_mode() if evaluating else contextlib.nullcontext():
            for i in range(count):
                images, labels = batches[i % 4]
                value = predict(pixels(images[0])).mean() if evaluating else train(images, labels)
        return float(value)

    run(1)
    seconds = time.perf_counter() - begun
    run(1)
    facts = {"compile_seconds": seconds, "torch": torch.__version__}
    if case.device == "cuda":
        facts["peak_device_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
    slots.serve(run, **facts)


if __name__ == "__main__":
    main()
