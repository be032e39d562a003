import json
import logging

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from unimix_jax.errors import UserError
from unimix_jax.models import init, networks, pretrained

SHAPE = (64, 64, 3)


NETWORK = networks.build("resnet10", 5)


@pytest.fixture(scope="module")
def variables():
    return init.initialise(NETWORK, SHAPE, seed=0)


def torchvision_state(classes, **changes):
    """A resnet10 by torchvision's names, of random values."""
    random = np.random.default_rng(1)
    shapes = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (classes, 512), "fc.bias": (classes,)}
    inputs = 64
    norms = {"bn1": 64}
    for stage, features in enumerate((64, 128, 256, 512), start=1):
        at = f"layer{stage}.0"
        shapes |= {f"{at}.conv1.weight": (features, inputs, 3, 3), f"{at}.conv2.weight": (features, features, 3, 3)}
        norms |= {f"{at}.bn1": features, f"{at}.bn2": features}
        if stage > 1:
            shapes[f"{at}.downsample.0.weight"] = (features, inputs, 1, 1)
            norms[f"{at}.downsample.1"] = features
        inputs = features
    for name, size in norms.items():
        shapes |= {f"{name}.{leaf}": (size,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["bn1.num_batches_tracked"] = np.array(7)
    return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


@pytest.fixture
def saved(tmp_path):
    def save(arrays):
        save_file(arrays, tmp_path / "w.safetensors")
        return tmp_path / "w.safetensors"

    return save


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_by_torchvisions_names_are_read(variables, saved, prefix):
    arrays = torchvision_state(5)
    found = pretrained.load(saved({prefix + k: v for k, v in arrays.items()}), NETWORK, variables)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, variables)
    params, stats = found["params"], found["batch_stats"]
    np.testing.assert_array_equal(params["conv1"]["conv"]["kernel"], arrays["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(params["layer2_0"]["downsample_bn"]["scale"], arrays["layer2.0.downsample.1.weight"])
    np.testing.assert_array_equal(params["head"]["linear"]["kernel"], arrays["fc.weight"].T)
    np.testing.assert_array_equal(stats["layer4_0"]["bn2"]["var"], arrays["layer4.0.bn2.running_var"])


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_head_of_another_size_or_kind_starts_anew_and_the_log_says_so(saved, caplog, monkeypatch, head):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    caplog.set_level(logging.INFO)
    network = networks.build("resnet10", 5, head=head)
    variables = init.initialise(network, SHAPE, seed=0)
    arrays = torchvision_state(1000)
    found = pretrained.load(saved(arrays), network, variables)
    for a, b in zip(*map(jax.tree.leaves, (found["params"]["head"], variables["params"]["head"])), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found["params"]["bn1"]["bias"], arrays["bn1.bias"])
    assert "the classifier starts anew" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer3.0.conv1.weight": None}, "another network: params/layer3_0/conv1/conv/kernel is absent there"),
        ({"layer1.1.conv1.weight": np.zeros((64, 64, 3, 3), np.float32)}, "layer1_1/conv1/conv/kernel is .* absent"),
        (
            {"conv1.weight": np.zeros((64, 3, 3, 3), np.float32)},
            r"is \(3, 3, 3, 64\) there and \(7, 7, 3, 64\)",
        ),
        (
            {"layer1.weight": np.zeros(3, np.float32)},
            "ImageNetResNet does not have in PyTorch|another network",
        ),
        ({"bn1.what": np.zeros(3, np.float32)}, "names or shapes that ImageNetResNet does not have"),
    ],
)
def test_weights_of_another_network_are_refused(variables, saved, changes, message):
    with pytest.raises(UserError, match=message):
        pretrained.load(saved(torchvision_state(5, **changes)), NETWORK, variables)


def test_a_file_that_holds_no_weights_gets_a_sentence(variables, tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        pretrained.digest(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        pretrained.load(path, NETWORK, variables)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"is no whole .safetensors file of floats"):
        pretrained.load(path, NETWORK, variables)
    assert pretrained.digest(path) != pretrained.digest(__file__)


def test_values_of_other_types_get_a_sentence(tmp_path):
    def save(kind, size, shape=(2,)):
        header = json.dumps({"conv1.weight": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
        (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
        return tmp_path / "w.safetensors"

    # A quantised or complex network would else become other numbers.
    for kind, size in {"F8_E4M3": 2, "F8_E5M2": 2, "C64": 16, "I8": 2, "U8": 2, "BOOL": 2, "F4": 1}.items():
        with pytest.raises(UserError, match=f"conv1.weight is of type {kind}; weights must be of F16, BF16, F32, F64"):
            pretrained.load(save(kind, size), NETWORK, {})
    for shape in ([0, 2**62], [1] * 70, [2**62, 8], "x", [-1]):
        with pytest.raises(UserError, match="no whole .safetensors file|no network has"):
            pretrained.load(save("F32", 0, shape), NETWORK, {})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"bn1.weight": np.array([1, np.nan], np.float32)}, "holds nan, infinity or numbers beyond float32"),
        ({"bn1.weight": np.array([1e300])}, "numbers beyond float32 in bn1.weight"),
        ({".".join(["a"] * 10_000): np.zeros(1, np.float32)}, "names or shapes that no network has"),
        ({"a": np.zeros((1,) * 9, np.float32)}, "names or shapes that no network has"),
        ({"": np.zeros(1, np.float32)}, "names or shapes that ImageNetResNet does not have"),
        ({"layer1": np.zeros(1, np.float32)}, "names or shapes that ImageNetResNet does not have"),
    ],
)  # fmt: skip
def test_values_that_no_network_has_get_a_sentence(saved, arrays, message):
    with pytest.raises(UserError, match=message):
        pretrained.load(saved(arrays), NETWORK, {})


def test_half_precision_is_read(saved):
    import ml_dtypes

    for kind in (np.float16, ml_dtypes.bfloat16, np.float64):
        read = pretrained._read_floats(saved({"a": np.array([1.5], kind), "a.num_batches_tracked": np.array(2)}))
        assert {name: (v.dtype, v.tolist()) for name, v in read.items()} == {"a": (np.float32, [1.5])}
