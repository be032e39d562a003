"""Your own images from one .npz file, all of one size: train a ResNet on them as they are.

    python -m unimix_jax.main --config=configs/arrays.py --config.data.file=F.npz

The file holds train_images uint8[N,H,W] or [N,H,W,C], train_labels, test_images, test_labels, and
may hold validation_images, validation_labels and class_names. Arguments after a colon: method, network.
"""

from unimix_jax.config import arguments, default, use_method, use_source


def get_config(text=None):
    values = arguments(text, method="unimix_bayias", network="resnet32")
    config = default()
    use_source(config, "arrays")
    config.network = values["network"]
    config.data.imbalance = 1.0  # above 1, an exponential cut is made of the training images
    config.data.pad = 2
    config.data.flip = False  # set it where a mirrored image is still one of its class
    use_method(config, values["method"])
    return config
