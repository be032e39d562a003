"""iNaturalist 2018: ResNet-50 at batch 512 by the paper's recipe (its supplement, C.2). 8,142 classes.

    python -m unimix_jax.main --config=configs/inat2018.py --config.data.dir=INATURALIST

INATURALIST holds train_val2018/ and, there or in a folder of it, the lists iNaturalist18_train.txt and
iNaturalist18_val.txt; the contest's own train2018.json and val2018.json do as well, by --config.data.train_list
and --config.data.test_list. The field tests on the validation images, and there are no others with labels.
Arguments after a colon: method; network; recipe: paper, or usual, the field's batch 256, rate .1, cosine, decay
1e-4, 200 epochs.

alpha: the supplement's E says that UniMix keeps the alpha of mixup and Remix on this set, without a number; theirs is
1 (C.1). So recipe=paper has 1, and recipe=usual .5, the paper's on CIFAR. At 1 the wrapped UniMix factor is uniform,
without preference for a class: only the inversely sampled partners are left of UniMix. MiSLAS mixes photographs with
.2. C.2 names no warm-up and no epoch at which mixing stops: there is none, and .6 of the run as on CIFAR.
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
    values = arguments(text, method="unimix_bayias", network="resnet50", recipe="paper")
    config = default()
    use_source(config, "photographs")
    config.network = values["network"]
    config.data.train_list = "iNaturalist18_train.txt"
    config.data.test_list = "iNaturalist18_val.txt"
    config.data.mean = (0.466, 0.471, 0.380)
    config.data.std = (0.195, 0.194, 0.192)
    config.batch_size = 512
    use_paper_schedule(config)
    if one_of("recipe", values["recipe"], ("paper", "usual")) == "usual":
        use_usual_schedule(config, epochs=200, weight_decay=1e-4)
    use_method(config, values["method"], data="inat2018", recipe=values["recipe"])
    return config
