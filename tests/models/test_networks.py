"""ViT and ConvNeXt, and what all networks have in common."""

import functools
import logging

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from unimix_jax.errors import UserError
from unimix_jax.models import heads, init, networks, pretrained
from unimix_jax.models.convnext import ConvNeXt
from unimix_jax.models.vit import ViT

from .. import quick
from ..golden import timm_networks

VIT = ViT(timm_networks.CLASSES, timm_networks.WIDTH, timm_networks.DEPTH, timm_networks.HEADS, timm_networks.PATCH)
CONVNEXT = ConvNeXt(timm_networks.CLASSES, timm_networks.BLOCKS, timm_networks.WIDTHS)
BOTH = pytest.mark.parametrize("name", ["vit", "convnext"])


def network_of(name):
    return CONVNEXT if "convnext" in name else VIT


def images_of(name):
    return timm_networks.IMAGES[name.removeprefix("torchvision_")].transpose(0, 2, 3, 1)


def first_variables(network, images):
    return init.initialise(network, images.shape[1:], seed=0)


def variables_of(name, file):
    """The variables of the golden file's network."""
    like = first_variables(network_of(name), images_of(name))
    return network_of(name).from_torch(timm_networks.weights(file, name), like)


@pytest.fixture
def load(tmp_path, golden):
    """Return load(name, network, changes): the variables read from a file of the golden weights with changes."""

    def load(name, network, images, **changes):
        arrays = timm_networks.weights(golden("timm_networks"), name) | changes
        save_file({k: v for k, v in arrays.items() if v is not None}, tmp_path / "w.safetensors")
        return pretrained.load(tmp_path / "w.safetensors", network, first_variables(network, images))

    return load


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "convnext", "torchvision_vit", "torchvision_convnext"])
def test_logits_are_those_of_timm_and_torchvision(load, golden, name):
    """Small networks; `benchmarks/torch_networks.py` compares those at full size, within 2.4e-6 of logits up to 3.2."""
    network, images = network_of(name), images_of(name)
    variables = load(name, network, images)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, first_variables(network, images))
    expected = golden("timm_networks")[name]
    logits = quick.jit(functools.partial(network.apply, train=False))(variables, images)
    assert logits.dtype == np.float32
    # float32 sums in another order, against float64: measured 6e-7 of the largest logit.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    with jax.enable_x64(True):
        exact = quick.jit(functools.partial(network.apply, train=False))(variables, images.astype(np.float64))
        assert exact.dtype == np.float64
        # Measured 2e-15 of the largest logit.
        np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.slow
def test_position_embeddings_of_another_grid_are_interpolated_as_by_timm(load, golden, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    caplog.set_level(logging.INFO)
    images, expected = images_of("vit_resampled"), golden("timm_networks")["vit_resampled"]
    variables = load("vit", VIT, images)
    assert "position embeddings of 4 x 4 patches are interpolated to 3 x 6" in caplog.text
    logits = quick.jit(functools.partial(VIT.apply, train=False))(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@BOTH
def test_gradients_are_finite_and_computed_again_the_same(name):
    small = VIT.clone(depth=1) if name == "vit" else CONVNEXT.clone(blocks=(1, 1), widths=(8, 16))
    images = images_of(name)
    variables = first_variables(small, images)
    for block in ("stage0_0", "stage1_0") if name == "convnext" else ():
        variables["params"][block]["gamma"] += 1
    results = []
    for remat in (False, True):
        network = small.clone(remat=remat)

        def loss(params, network=network):
            return (network.apply({"params": params}, images, train=True) ** 2).sum()

        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(variables["params"]))) == remat
        results.append(quick.jit(jax.value_and_grad(loss))(variables["params"]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(a).max())  # sums in another order
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(results[0]))


@pytest.mark.slow
@BOTH
def test_bfloat16_computes_in_it_and_returns_float32(golden, name):
    images, file = images_of(name), golden("timm_networks")
    network = network_of(name).clone(dtype=jnp.bfloat16)
    logits = quick.jit(functools.partial(network.apply, train=False))(variables_of(name, file), images)
    assert logits.dtype == jnp.float32
    assert 1e-4 < np.abs(logits - file[name]).max() / np.abs(file[name]).max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),  # of timm 1.0.31, under its names vit_small_patch16_224, vit_base_patch16_224, convnext_*
    [
        ("vit_s16", 22_050_664),
        ("vit_b16", 86_567_656),
        ("convnext_tiny", 28_589_128),
        ("convnext_small", 50_223_688),
        ("convnext_base", 88_591_464),
    ],
)
def test_parameter_counts_are_timms(name, count):
    network = networks.build(name, 1000, remat=True)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: network.init(key, x, train=False), jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    assert shapes.keys() == {"params"}


@BOTH
def test_first_values_follow_the_stated_laws_and_compile_nothing(compilations, name):
    network = network_of(name).clone(width=384) if name == "vit" else CONVNEXT.clone(widths=(64, 64, 128, 256))
    variables = first_variables(network, images_of(name))
    assert compilations() == 0
    assert variables.keys() == {"params", "batch_stats"}
    assert not variables["batch_stats"]
    head = variables["params"].pop("head")["linear"]
    features = len(head["kernel"])
    for values in head.values():
        assert np.abs(values).max() <= 1 / np.sqrt(features)
    assert abs(head["kernel"].std() * np.sqrt(3 * features) - 1) < 0.05
    names = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables["params"])[0]:
        mean, deviation = network.first_values[path[-1].key]
        assert abs(leaf.mean() - mean) <= 5 * deviation / np.sqrt(leaf.size) + 1e-12
        assert abs(leaf.std() - deviation) <= 4 * deviation / np.sqrt(2 * leaf.size) + 1e-12
        names.add(path[-1].key)
    assert names == network.first_values.keys()


def scaled(variables, factors):
    """Multiply the outputs of layers, named by their modules."""
    params = dict(variables["params"])
    for (block, layer), factor in factors.items():
        params[block] = params[block] | {layer: jax.tree.map(lambda leaf, f=factor: leaf * f, params[block][layer])}
    return {"params": params}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "branches"),
    [("vit", [("blocks_1", "proj"), ("blocks_1", "fc2")]), ("convnext", [("stage3_0", "gamma")])],
)
def test_an_image_skips_a_branch_or_sees_it_doubled(golden, name, branches):
    network, variables = network_of(name).clone(drop_path=0.5), variables_of(name, golden("timm_networks"))
    if name == "convnext":  # only the last block may be skipped
        network = network.clone(blocks=(1, 0, 0, 1), widths=(8, 8, 8, 8))
        variables = first_variables(network, images_of(name))
        variables["params"]["stage3_0"]["gamma"] += 1
    images = np.tile(images_of(name)[:1], (16, 1, 1, 1))

    @quick.jit
    def logits(variables, key, factors):
        evaluated = network.apply(scaled(variables, dict(zip(branches, factors, strict=True))), images[:1], train=False)
        return evaluated[0], network.apply(variables, images, train=True, rngs={"dropout": key})

    choices = np.stack(np.meshgrid(*[[0.0, 2.0]] * len(branches)), axis=-1).reshape(-1, len(branches))
    dropped = logits(variables, jax.random.key(0), choices[0])[1]
    expected = np.stack([logits(variables, jax.random.key(0), choice)[0] for choice in choices])
    distance = np.abs(np.asarray(dropped)[:, None] - expected).max(axis=2)
    assert (distance.min(axis=1) < 1e-4).all()
    assert set(distance.argmin(axis=1)) == set(range(len(choices)))


@pytest.mark.slow
def test_dropout_needs_its_key_in_training_only(golden):
    images, variables = images_of("vit"), variables_of("vit", golden("timm_networks"))
    network = VIT.clone(dropout=0.2)

    @quick.jit
    def logits(key):
        evaluated = network.apply(variables, images, train=False)
        return evaluated, network.apply(variables, images, train=True, rngs={"dropout": key})

    (evaluated, first), (_, again), (_, other) = (jax.device_get(logits(jax.random.key(i))) for i in (0, 0, 1))
    np.testing.assert_allclose(evaluated, golden("timm_networks")["vit"], atol=1e-4)
    np.testing.assert_array_equal(first, again)
    for a, b in ((first, evaluated), (first, other)):
        assert np.abs(a - b).max() > 0.05
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(functools.partial(network.apply, train=True), variables, images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "resnet10", "vit_s16", "convnext_tiny"])
def test_a_network_calls_the_mixer_at_its_levels(name):
    network, image = networks.build(name, 3), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    levels = []

    def mix(level, x):
        levels.append(level)
        return x

    jax.eval_shape(functools.partial(network.init, train=False, mix=mix), jax.random.key(0), image)
    assert levels == sorted(levels)
    assert set(levels) >= set(range(network.levels))
    assert network.levels == (1 if name == "vit_s16" else 3)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("head", list(heads.HEADS))
def test_every_head_is_built_under_its_name(name, head):
    network = network_of(name).clone(head=head)
    params = jax.eval_shape(lambda key: network.init(key, images_of(name)[:1], train=False), jax.random.key(0))[
        "params"
    ]
    assert params["head"].keys() == heads.HEADS[head].parameter_groups.keys()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit", {"norm.weight": None}, "another network: params/norm/scale is absent there"),
        ("vit", {"blocks.2.norm1.bias": np.zeros(32, np.float32)}, "params/blocks_2/norm1/bias is .* absent in this"),
        ("vit", {"cls_token": np.zeros((1, 1, 8), np.float32)}, r"params/class_token is \(8,\) there and \(32,\)"),
        ("vit", {"pos_embed": np.zeros((1, 18, 32), np.float32)}, r"ViT does not have .*\(1, 18, 32\).* a square"),
        ("vit", {"pos_embed": np.zeros(32, np.float32)}, "names or shapes that ViT does not have in PyTorch"),
        ("vit", {"norm.running_mean": np.zeros(32, np.float32)}, "that ViT does not have in PyTorch .*running_mean"),
        ("vit", {"class_token": np.zeros((1, 1, 32), np.float32)}, "ViT does not have .*class_token twice"),
        (
            "vit",
            {"patch_embed.proj.weight": np.zeros((32, 3, 8, 8), np.float32)},
            r"params/patches/kernel is \(8, 8, 3, 32\) there and \(4, 4, 3, 32\) in this one",
        ),
        ("convnext", {"stages.0.blocks.0.gamma": None}, "another network: params/stage0_0/gamma is absent there"),
        ("convnext", {"features.9": np.zeros(3, np.float32)}, "names or shapes that ConvNeXt does not have"),
        ("torchvision_convnext", {"features.9.0.layer_scale": np.ones((8, 1, 1), np.float32)}, "stage4_0/gamma is"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused(load, name, changes, message):
    with pytest.raises(UserError, match=message):
        load(name, network_of(name), images_of(name), **changes)


@pytest.mark.slow
def test_a_resnets_weights_are_no_vits(tmp_path):
    save_file({"layer1.0.conv1.weight": np.zeros((4, 4, 3, 3), np.float32)}, tmp_path / "w.safetensors")
    variables = first_variables(VIT, images_of("vit"))
    with pytest.raises(UserError, match="another network: .* choose its network by --config.network"):
        pretrained.load(tmp_path / "w.safetensors", VIT, variables)


@pytest.mark.slow
@BOTH
def test_a_head_of_another_size_starts_anew(load, golden, name):
    network, images = network_of(name).clone(num_classes=3), images_of(name)
    loaded, first = load(name, network, images)["params"], first_variables(network, images)["params"]
    np.testing.assert_array_equal(loaded["head"]["linear"]["kernel"], first["head"]["linear"]["kernel"])
    norm = {"vit": "norm.weight", "convnext": "head.norm.weight"}[name]
    expected = timm_networks.weights(golden("timm_networks"), name)[norm]
    np.testing.assert_array_equal(loaded["norm"]["scale"], expected)


def test_a_network_that_cannot_read_weights_says_so():
    with pytest.raises(UserError, match="w.safetensors, but Dense reads no weights: it has no function from_torch"):
        pretrained.load("w.safetensors", nn.Dense(3), {})


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (VIT, (18, 16, 3), "images of 18 x 16 pixels do not consist of this network's patches of 4 x 4"),
        (CONVNEXT, (31, 64, 3), "images of 31 x 64 pixels are too small .* at least 32 pixels"),
        (VIT.clone(heads=5), (16, 16, 3), "the 5 heads of the attention do not divide the network's width, 32"),
        (CONVNEXT.clone(blocks=(1, 1)), (32, 32, 3), r"blocks \(1, 1\) and widths \(8, 16, 24, 32\); each stage needs"),
    ],
)
def test_images_and_attributes_that_do_not_fit_are_refused(network, shape, message):
    with pytest.raises(UserError, match=message):
        init.initialise(network, shape, seed=0)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("resnet50", "blocks", (1, 0, 1, 1)),
        ("resnet50", "blocks", 3),
        ("resnet50", "block", "Bottleneck"),
        ("convnext_tiny", "widths", ()),
        ("convnext_tiny", "drop_path", 1),
        ("convnext_tiny", "drop_path", float("nan")),
        ("vit_b16", "dropout", "high"),
        ("vit_b16", "depth", True),
    ],
)
def test_options_out_of_bounds_are_refused(name, option, value):
    with pytest.raises(UserError, match=f"{option} of network '{name}' is .*; it must be "):
        networks.build(name, 3, options={option: value})


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="unknown head"):
        networks.build("resnet32", 10, head="round")
    with pytest.raises(UserError, match="did you mean 'resnet32'"):
        networks.build("resnet-32", 10)
    with pytest.raises(UserError, match="did you mean 'vit_s16'"):
        networks.build("vit_s_16", 10)
