"""Your own photographs: a folder with a sub-folder a class, list files, or prepared TFDS data.

    python -m unimix_jax.main --config=configs/image_folder.py --config.data.dir=FOLDER
    python -m unimix_jax.main --config=configs/image_folder.py --config.data.dir=IMAGES \\
        --config.data.train_list=train.txt --config.data.test_list=test.txt

A fifth of each class is held out for the test and a tenth for validation, where FOLDER has no train/ and test/ (or
val/) of its own; see docs/photographs.md. Arguments after a colon: method, network.

A small data set from chance: ResNet-10, batch 32, 60 epochs, the rate by the cosine from .05. Begin from trained
weights by --config.pretrained where you have them.

alpha of UniMix is .5, the paper's on CIFAR. At 1 its wrapped factor is uniform, without preference for a class; MiSLAS
mixes photographs with .2.
"""

from unimix_jax.config import arguments, default, use_method, use_source


def get_config(text=None):
    values = arguments(text, method="unimix_bayias", network="resnet10")
    config = default()
    use_source(config, "photographs")
    config.network = values["network"]
    config.epochs = 60
    config.batch_size = 32
    config.optim.learning_rate = 0.05
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 5e-4
    config.optim.warmup_epochs = -1  # 5 of 60
    use_method(config, values["method"])
    return config
