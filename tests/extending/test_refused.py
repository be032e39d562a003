"""Parts of a user that cannot be used get a sentence before the first step."""

import pathlib

import pytest

from unimix_jax.config import parse
from unimix_jax.errors import UserError
from unimix_jax.training.setup import prepare

from .document import SMALL_VIT

FILE = "own_networks.py"


@pytest.mark.parametrize(
    ("method", "argv", "message"),
    [
        ("crt", ["network=my_networks:Headless"], "has no module named head .* stage 'retrained' of method 'crt'"),
        ("tau_norm", ["network=my_networks:Headless"], "has no module named head .* the posthoc function tau_norm"),
        ("erm", ["network=my_networks:BatchNormAndDropout"], "has batch statistics and draws random numbers"),
        ("erm", ["network=my_networks:Features"], r"must return logits \[2, 10\]"),
        ("erm", ["network_options.depht=3"], "network resnet8 takes no option 'depht'.* it takes "),
        ("erm", ["network=my_networks:Absent"], "cannot import 'my_networks:Absent'"),
        ("erm", ["network=my_exit:Anything"], "cannot import 'my_exit:Anything': SystemExit: 3"),
        ("erm", ["network=my_networks:Exits"], "network my_networks:Exits cannot be made: SystemExit: no licence"),
        ("erm", ["network=my_networks:NoModule"], "NoModule is of type NoModule; it must be a Flax module"),
        (
            "erm",
            ["method.head=my_networks:NoModule"],
            "head my_networks:NoModule is of type NoModule; it must be a Fla",
        ),
        ("erm", ["method.head=my_networks:Exits"], "head my_networks:Exits cannot be made: SystemExit: no licence"),
        ("erm", ["network=builtins:dict"], "network builtins:dict is no class of a Flax module"),
        ("erm", ["network=my_networks:Raises"], rf"fails on images of 8 x 8 x 1: Type.*, in line \d+ of .*{FILE}$"),
        ("erm", ["method.head=my_networks:Raises"], rf"head my_networks:Raises fails on .*, in line \d+ of .*{FILE}$"),
        ("ldam", ["network=my_networks:Headless"], "no attribute `head`, so it cannot have the head cosine that the"),
        ("erm", ["network=my_networks:Headless", "dtype=bfloat16"], "no attribute `dtype`, so .* the dtype bfloat16"),
        ("erm", ["network=my_networks:Headless", "remat=true"], "no attribute `remat`, so .* the remat True that"),
        (
            "erm",
            ["network=my_networks:Unsynchronised", "parallel.devices=8"],
            "no attribute `axis`, so 8 devices cannot",
        ),
        ("erm", ["network=my_networks:HeadIsAnArray"], "has a parameter named head at its top"),
        (
            "erm",
            ["network=my_networks:LogitsOf", "network_options.type=int32"],
            "logits of the type int32; they must be",
        ),
        (
            "tau_norm",
            ["network=my_networks:HeadWithoutLinear"],
            "parameters bias, kernel; .* linear/kernel and linear/b",
        ),
        (
            "tau_norm",
            ["method.head=scaled"],
            "parameters linear/bias, linear/kernel, scale; tau_norm of method 'tau_norm' nee",
        ),
        ("erm", [*SMALL_VIT, "network_options.heads=5"], "the 5 heads of the attention do not divide .* width, 16"),
        (
            "erm",
            [*SMALL_VIT, "network_options.dropout=1.5"],
            "dropout of network 'vit_s16' is 1.5; it must be a number",
        ),
        ("erm", [*SMALL_VIT, "network_options.dropout=true"], "dropout of network 'vit_s16' is True; it must be"),
        ("erm", [*SMALL_VIT, "network_options.drop_path=-.5"], "drop_path of network 'vit_s16' is -0.5; it must be"),
        (
            "erm",
            [*SMALL_VIT, "network_options.mlp_ratio=2.5"],
            "mlp_ratio of network 'vit_s16' is 2.5; .* whole number",
        ),
        ("erm", ["network_options.blocks=0"], "blocks of network 'resnet8' is 0; it must be a whole number"),
        ("manifold_mixup", ["network=my_networks:ConvNeXt"], "mixes at level 1 of the network, which has no level but"),
        ("manifold_mixup", SMALL_VIT, "mixes at level 1 of the network, which has no level but its input, 0"),
        ("manifold_mixup", ["network=my_vit:ViT"], "my_vit:ViT draws random numbers, so stage .* cannot mix inside"),
        ("erm", ["optim.name=adamww"], "unknown optimiser 'adamww' .did you mean 'adamw'"),
        ("erm", ["optim.name=adamw", "optim.options.b3=.9"], "takes no option 'b3'"),
        ("erm", ["optim.name=adam", "optim.decay_biases_and_norms=false"], "adam takes no mask of its decay"),
        ("erm", ["optim.schedule=cosin"], "unknown schedule 'cosin' .did you mean 'cosine'"),
        ("erm", ["optim.schedule=my_networks:negative"], "the schedule of config.optim is -0.2 at step 0"),
        ("erm", ["data.augment=crop,crop"], "names crop twice"),
        ("erm", ["data.augment=my_networks:halved"], "the augmentation halved returns .*; it must return .*float32"),
        ("erm", ["data.augment_options.cutout.size=3"], "unknown augmentation of config.data.augment_options 'cutout'"),
        ("erm", ["data.source=my_networks:nothing"], "returns NoneType; it must return unimix_jax.data.types.Splits"),
        ("erm", ["measures=my_networks:nothing"], "the measure my_networks:nothing returns None"),
        ("erm", ["method.head=cosin"], "unknown head 'cosin' .did you mean 'cosine'"),
    ],
)
def test_parts_that_cannot_be_used_get_a_sentence_before_the_first_step(mine, method, argv, message):
    (mine / "my_exit.py").write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=message):
        prepare(
            parse(["main", f"--config=digits_lt.py:method={method}", *(f"--config.{a}" for a in argv)]).config,
            pathlib.Path("unwritten"),
        )
