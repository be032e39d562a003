"""ImageNet-LT: ResNet-10 at batch 512, ResNet-50 at batch 64, by the paper's recipe (its supplement, C.2).

    python -m unimix_jax.main --config=configs/imagenet_lt.py --config.data.dir=IMAGENET

IMAGENET holds train/n01440764/... and val/n01440764/... of ILSVRC 2012, and there or in a folder of it the lists
ImageNet_LT_train.txt, ImageNet_LT_val.txt and ImageNet_LT_test.txt. Arguments after a colon: method; network
(resnet10, resnet50, ...); recipe: paper, or usual, the field's batch 256, rate .1, cosine, decay 5e-4, 180 epochs.

C.2 gives the rate .2 for both networks. At batch 64 that is eight times what scaling with the batch would give
(.025); it is kept as written. C.2 names no warm-up and no epoch at which mixing stops: there is none, and .6 of the
run as on CIFAR.

alpha: E says that UniMix keeps the alpha of mixup and Remix on this set, without a number; theirs is 1 (C.1). So
recipe=paper has 1, and recipe=usual .5, the paper's on CIFAR. At 1 the wrapped UniMix factor is uniform, without
preference for a class: only the inversely sampled partners are left of UniMix. MiSLAS mixes photographs with .2.
"""

from unimix_jax.config import (
    arguments,
    default,
    use_method,
    use_paper_schedule,
    use_source,
    use_usual_schedule,
)
from unimix_jax.errors import one_of


def get_config(text=None):
    values = arguments(text, method="unimix_bayias", network="resnet10", recipe="paper")
    config = default()
    use_source(config, "photographs")
    config.network = values["network"]
    config.data.train_list = "ImageNet_LT_train.txt"
    config.data.validation_list = "ImageNet_LT_val.txt"
    config.data.test_list = "ImageNet_LT_test.txt"
    config.batch_size = 512 if values["network"] in ("resnet10", "resnet18", "resnet34") else 64
    use_paper_schedule(config)
    if one_of("recipe", values["recipe"], ("paper", "usual")) == "usual":
        use_usual_schedule(config, epochs=180, weight_decay=5e-4)
    use_method(config, values["method"], data="imagenet_lt", recipe=values["recipe"])
    return config
