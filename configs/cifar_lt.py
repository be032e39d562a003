"""CIFAR-10-LT and CIFAR-100-LT by the paper's recipe (its supplement, C.1): ResNet-32, 200 epochs.

    python -m unimix_jax.main --config=configs/cifar_lt.py:dataset=cifar10,imbalance=100,method=unimix_bayias

Arguments after the colon: dataset (cifar10, cifar100), imbalance, method. The official files are looked
for under --config.data.dir, else $UNIMIX_DATA_DIR, else ~/data; --config.data.download fetches them.
"""

from unimix_jax.config import arguments, default, use_method, use_source
from unimix_jax.errors import one_of


def get_config(text=None):
    values = arguments(text, dataset="cifar10", imbalance=100.0, method="unimix_bayias")
    config = default()
    use_source(config, one_of("dataset", values["dataset"], ("cifar10", "cifar100")))
    config.data.imbalance = values["imbalance"]
    use_method(config, values["method"])
    return config
