"""The worker of `train_step.py` that runs this project's compiled step."""

import argparse
import functools
import os
import time

import slots


def main():
    parser = argparse.ArgumentParser()
    slots.add_case(parser)
    parser.add_argument("--variant", default="auto", choices=("auto", "xla", "cpu_kernels"), help="as parallel.ops")
    case = parser.parse_args()
    slots.pin(case.threads)
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # compile times are those of a first start

    import jax
    import numpy as np

    from unimix_jax import priors
    from unimix_jax.config import default, use_method
    from unimix_jax.data.types import Batch
    from unimix_jax.methods import build as methods
    from unimix_jax.models import init, networks
    from unimix_jax.training import augmentations, optim, runtime
    from unimix_jax.training.devices import AXIS, distribute, local_devices, ops_backend, replicate, shard
    from unimix_jax.training.step import StepConfig, StepInputs, first_state, predict_step, train_step

    runtime.prepare_runtime(1 if case.network == "resnet8" else 0)  # as configs/digits_lt.py
    devices = local_devices(1)
    config = default()
    use_method(config, "unimix_bayias")
    counts = np.array(slots.counts(case.classes))
    stage = methods.build(
        config.method.to_dict(),
        counts,
        name="unimix_bayias",
        epochs=200,
        steps_per_epoch=97,
        test_prior=priors.test_prior("uniform", counts),
    ).stages[0]
    backend = ops_backend(devices, case.variant)
    network = networks.build(case.network, case.classes, axis=AXIS)
    shape = (case.size, case.size, case.channels)
    mean, std = np.full(case.channels, 0.47, np.float32), np.full(case.channels, 0.25, np.float32)
    augmentations = functools.partial(augmentations.crop, pad=4), functools.partial(augmentations.flip, flip=True)
    augmentations = augmentations if case.what == "augmented" else ()
    step_config = StepConfig(optim.sgd(momentum=0.9, weight_decay=2e-4), mean, std, augmentations, ops=backend)
    state = first_state(init.initialise(network, shape, 0), step_config.optimiser)
    state = replicate(state, devices)
    numbers = StepInputs(np.uint32(0), np.float32(0.01), stage.class_weight)

    random = np.random.default_rng(0)

    def batch():
        images = random.integers(0, 256, (2, case.batch, *shape), dtype=np.uint8)
        labels = random.integers(0, case.classes, (2, case.batch), dtype=np.int32)
        views = np.arange(2 * case.batch, dtype=np.int32).reshape(2, -1)
        return Batch(images[0], labels[0], views[0], images[1], labels[1], views[1])

    batches = [batch() for _ in range(4)]
    if case.what == "evaluate":

        def predict(variables, images, *, axis):
            return predict_step(variables, images, network=network, config=step_config)

        compiled = distribute(predict, devices, split=(None, 0), result=0)
        variables = {"params": state.params, "batch_stats": state.batch_stats}

        def run(count):
            for i in range(count):
                logits = np.asarray(compiled(variables, shard(batches[i % 4].image, devices)))
            return float(logits.mean())
    else:
        step = functools.partial(train_step, stage=stage, network=network, config=step_config)
        compiled = distribute(step, devices, donate=(0,))

        def run(count):
            nonlocal state
            before = None
            for i in range(count):  # as the loop does: at most two steps in flight
                state, sums = compiled(state, shard(batches[i % 4], devices), numbers)
                jax.block_until_ready(before)
                before = sums
            jax.block_until_ready(state)
            return float(sums["loss"][0] / sums["loss"][1])

    begun = time.perf_counter()
    run(1)
    seconds = time.perf_counter() - begun
    run(1)
    slots.serve(run, compile_seconds=seconds, jax=jax.__version__, ops=backend)


if __name__ == "__main__":
    main()
