"""Places-LT: ResNet-152, begun from weights trained on ImageNet, as the field does. 365 classes, 62,500 images.

    python -m unimix_jax.main --config=configs/places_lt.py --config.data.dir=PLACES \\
        --config.pretrained=WEIGHTS.safetensors

PLACES holds train/ and val/ of Places365 and, there or in a folder of it, the lists Places_LT_train.txt,
Places_LT_val.txt and Places_LT_test.txt. WEIGHTS are torchvision's resnet152, saved by
`safetensors.torch.save_file`; without --config.pretrained the network starts from chance, which no published figure on
Places-LT does, and the report says which it was.

The paper has no Places-LT: its supplement's C.2 and its code are silent. This is the field's usual recipe for
photographs (batch 256, rate .1, cosine, decay 5e-4), for 30 epochs of fine-tuning; the rate of a pretrained
backbone is not lowered. MiSLAS' second stage (mislas, unimix_bayias_las) has its smoothing for this set, .4
and .1. Arguments after a colon: method; network.

alpha of UniMix is .5, the paper's on CIFAR, for the paper names none here. At 1, which it has on ImageNet-LT by its
supplement's E and C.1, the wrapped factor is uniform, without preference for a class; MiSLAS mixes photographs with .2.
"""

from unimix_jax.config import arguments, default, use_method, use_source, use_usual_schedule


def get_config(text=None):
    values = arguments(text, method="unimix_bayias", network="resnet152")
    config = default()
    use_source(config, "photographs")
    config.network = values["network"]
    config.data.train_list = "Places_LT_train.txt"
    config.data.validation_list = "Places_LT_val.txt"
    config.data.test_list = "Places_LT_test.txt"
    use_usual_schedule(config, epochs=30, weight_decay=5e-4)
    use_method(config, values["method"], data="places_lt")
    return config
