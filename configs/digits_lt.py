"""Handwritten digits made long-tailed: real images, no download, ten seconds to half a minute.

    python -m unimix_jax.main --config=configs/digits_lt.py --workdir=runs/digits

Arguments after a colon: method, imbalance.
"""

from unimix_jax.config import arguments, default, use_method, use_source


def get_config(text=None):
    values = arguments(text, method="unimix_bayias", imbalance=20.0)
    config = default()
    use_source(config, "digits")
    config.network = "resnet8"
    config.epochs = 100
    config.batch_size = 32
    config.data.imbalance = values["imbalance"]
    config.data.pad = 1  # the images are 8 x 8
    config.data.flip = False  # a mirrored digit is none
    config.checkpoint.every = 20
    config.parallel.cpu_threads = 1  # the step is so small that sharing it out takes longer than doing it
    use_method(config, values["method"])
    return config
