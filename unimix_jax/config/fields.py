"""Every field of a config, declared once: default, help, bounds, and whether it may differ when a run is resumed.

The default config (`build`), the list of `--config=FILE --help` (`listing`), the range checks (`checks`) and the
comparison of a run with the config that it is resumed with (`compare`) are made from these declarations. A new field
is a line here. Fields of methods are declared by the recipes (`methods/recipes.py`); `METHOD_ENTRIES` has their help.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from unimix_jax.registry import FLAG, Bound, above, at_least, choice

# Values of Field.resume: may a run be resumed with another value of the field?
FIXED = "fixed"  # no: the field changes the numbers of a run
FREE = "free"  # yes: it changes records, speed, or the last bits of sums
SEEN_IN_DATA = "seen in data"  # yes, as long as the data is the same: the digests in run.json say so

# Other defaults of a user's own source, "module:function": its images are taken as they are, for nothing is known of
# them. A crop with a border, a mirror, or a long-tailed cut is asked for.
OF_OWN_SOURCE = {"data.imbalance": 1.0, "data.pad": 0, "data.flip": False}
_PHOTOGRAPHS = ("photographs",)
_CIFAR = ("cifar10", "cifar100")


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the config.

    Attributes:
      name: dotted, as on the command line ("optim.momentum").
      default: its value; a function of the config for a value that follows other fields.
      help: one sentence.
      bound: the values that it may have; or, as a text, why any value passes here and where it is checked.
      resume: FIXED, FREE or SEEN_IN_DATA.
      sources: the data sources that have this field; () for all of them.
      by_source: other defaults, by data source.
      old: its name before, accepted for one release.
      new_values: values that had another name before, {old: new}.
      hints: last parts of names that other tools have for it.
    """

    name: str
    default: Any
    help: str
    bound: Bound | str
    resume: str = FIXED
    sources: tuple[str, ...] = ()
    by_source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    old: str = ""
    new_values: Mapping[Any, Any] = dataclasses.field(default_factory=dict)
    hints: tuple[str, ...] = ()

    def default_for(self, source: str) -> Any:
        """Return the default of this field for a data source."""
        if ":" in source and self.name in OF_OWN_SOURCE:
            return OF_OWN_SOURCE[self.name]
        return self.by_source.get(source, self.default)


def _at_least(least: float, words: str = "") -> Bound:
    return at_least(least)._replace(words=words) if words else at_least(least)


def _numbers(allows: Callable[[float], bool], words: str, length: int | None = None) -> Bound:
    """Return the bound of a sequence of finite numbers, each of which `allows` allows."""

    def fits(values: Any) -> bool:
        if isinstance(values, str) or length not in (None, len(values)):
            return False
        return all(isinstance(v, int | float) and math.isfinite(v) and allows(v) for v in values)

    return Bound(fits, words)


def _names(values: Any) -> bool:
    return not isinstance(values, str) and all(isinstance(v, str) for v in values) and len({*values}) == len(values)


def _rising_fractions(values: Any) -> bool:
    return _numbers(lambda v: 0 < v <= 1, "").allows(values) and list(values) == sorted(values)


def _resize_of(config) -> Any:
    """Return the usual resize of a config's images as a reference, which follows the field image_size."""
    return (config.data.get_ref("image_size") * 256 + 112) // 224


_COUNT = at_least(1)
_SEED = Bound(lambda v: 0 <= v < 2**32, "in 0..4294967295")
_SWITCH = FLAG._replace(words="true or false")
_FRACTION = Bound(lambda v: 0 < v <= 1, "above 0 and at most 1")
_SHARE = Bound(lambda v: 0 <= v < 1, "a share of each class, at least 0 and below 1")
_NO_SOURCE = "data/sources/__init__.py refuses a source that it does not have"
_PATH = "any path; the reader of the data says where nothing is there"
_IMBALANCE = _at_least(
    1, "the largest class divided by the smallest, at least 1 (where a source gives its inverse, .01, use 100)"
)
_WARMUP = Bound(
    lambda v: math.isfinite(v) and (v >= 0 or v == -1),
    "a number of epochs, 0 for none, or -1 for the usual: 5, or a tenth of a run under 50 epochs",
)
# Elsewhere `pretrained` is a switch: its values are no files.
_WEIGHTS = Bound(
    lambda v: v.lower() not in ("true", "false", "none", "imagenet", "1", "0"),
    "the path of a .safetensors file with torchvision's or timm's names, or empty for random weights",
)

# A table: name, default, help, bound, and then what is special of a field.
# fmt: off
_RUN = (
    Field("seed", 0, "Seed of initial weights, order, pairs and augmentation; not of the choice of images.", _SEED),
    Field("replicates", 1,
          "Runs with the seeds seed, seed + 1, ... that one program trains together, for their mean and deviation.",
          Bound(lambda v: isinstance(v, int) and 1 <= v <= 256, "a number of runs, 1 to 256"),
          hints=("num_seeds", "n_seeds", "repeats", "num_runs")),
    Field("epochs", 200, "Length of the run.", _COUNT, hints=("epoch", "num_epochs", "max_epochs", "n_epochs")),
    Field("batch_size", 128, "Images a step, over all devices.", _COUNT, hints=("batch", "bs", "train_batch_size")),
    Field("grad_accum_steps", 1,
          "Parts of a device's share of the batch that go through the network in turn: less memory.", _COUNT,
          old="accumulate", hints=("gradient_accumulation_steps", "accumulate_grad_batches", "accum_iter")),
    Field("steps_per_dispatch", 0,
          "Steps that one program takes, with the training images on the devices; 0 for the best number: 1 on CPUs.",
          _at_least(0, "a number of steps, or 0 for the best number here"), FREE),
    Field("eval_batch_size", 500, "Images a prediction step, over all devices; rounded up to a multiple of them.",
          _COUNT, by_source={"photographs": 100}, hints=("val_batch_size", "test_batch_size")),
    Field("network", "resnet32",
          'Network: resnet8, resnet32, resnet50, vit_s16, convnext_tiny, ..., or "module:Class".',
          "models/networks.py refuses a network that it does not have", hints=("arch", "model", "net", "backbone")),
    Field("dtype", "float32", "Type of convolutions and activations.", choice("float32", "bfloat16"),
          hints=("precision", "amp", "fp16", "half", "bf16")),
    Field("remat", False, "Compute activations again in the backward pass: less memory, more time.", _SWITCH, FREE),
    Field("pretrained", "",
          "Trained weights: a .safetensors file with torchvision's or timm's names; empty for random weights.",
          _WEIGHTS,
          old="init", hints=("weights", "checkpoint_path", "pretrained_weights")),
    Field("test_prior", "uniform",
          "Prior of the data to predict, for losses that take it: uniform, train, imbalance:R, or a file.",
          "priors.py refuses a prior that it cannot read"),
    Field("measures", (), 'Measures beside the project\'s own: "module:function", (probabilities, labels) -> number.',
          "metrics/summaries.py refuses a measure that it cannot import", FREE),
    Field("log_every", 50, "Steps between records of the training loss.", _COUNT, FREE, hints=("print_freq",)),
    Field("eval_every", 5, "Epochs between evaluations; 0 for the last step only.",
          _at_least(0, "a number of epochs, or 0 for the last step only"), FREE),
    Field("loggers", ("jsonl", "progress"),
          'Where records go: jsonl (always), progress, tensorboard, wandb, mlflow, or your own "module:object".',
          Bound(_names, "names of loggers, each once, such as jsonl,progress,tensorboard"), FREE,
          hints=("logger", "log_with", "report_to", "tracker", "tensorboard", "wandb", "mlflow")),
)

_DATA = (
    Field("data.source", "", "Where the images come from; the config file sets it.", _NO_SOURCE),
    Field("data.imbalance", 100.0,
          "Images of the largest training class divided by those of the smallest; 1 keeps all images.",
          _IMBALANCE,
          by_source={"photographs": 1.0, "digits": 20.0},
          hints=("imb_factor", "imb_ratio", "imbalance_ratio", "imbalance_factor")),
    Field("data.profile", "exp", "Form of the class counts of a long-tailed subset.", choice("exp", "step", "pareto"),
          hints=("imb_type",)),
    Field("data.subset_seed", 0, "Seed of the images that a long-tailed subset keeps; 0 gives the published subsets.",
          _SEED, old="data.cut_seed"),
    Field("data.split_seed", 0, "Seed of the images held out, where the data has no splits of its own.", _SEED),
    Field("data.on_device", False,
          "Keep the training images on the devices instead of the host; not for photographs.", _SWITCH, FREE,
          old="data.residence", new_values={"host": False, "device": True}),
    Field("data.augment", ("crop", "flip", "jitter"),
          'Augmentations of training images in their order: crop, flip, jitter, rand_augment, random_erasing, or '
          '"module:function".',
          "training/augmentations.py refuses an augmentation that it does not have",
          hints=("augmentation", "augmentations", "transforms", "aug")),
    Field("data.pad", 4, "Black pixels on each side before the random crop; 0 for no crop.", _at_least(0),
          by_source={"photographs": 0}),
    Field("data.flip", True, "Mirror half of the training images.", _SWITCH, hints=("hflip", "fliplr")),
    Field("data.jitter", (0.0, 0.0, 0.0), "Largest change of brightness, contrast and saturation.",
          _numbers(lambda v: 0 <= v <= 1, "three numbers in 0..1: brightness, contrast, saturation", 3),
          by_source={"photographs": (0.4, 0.4, 0.4)}, hints=("color_jitter",)),
)

_SOURCES = (
    Field("data.dir", "", "Folder of the data; empty for $UNIMIX_DATA_DIR or ~/data.", _PATH, SEEN_IN_DATA,
          (*_PHOTOGRAPHS, *_CIFAR), hints=("data_dir", "root", "data_root", "data_path", "dataroot", "datadir")),
    Field("data.download", False, "Fetch the official files (170 MB) if they are not there.", _SWITCH, SEEN_IN_DATA,
          _CIFAR),
    Field("data.validation_per_class", 0,
          "Test images of each class set apart for validation; they are no part of the test.", _at_least(0), FIXED,
          _CIFAR),
    Field("data.file", "", "Path of the .npz file with images and labels.", _PATH, SEEN_IN_DATA, ("arrays",)),
    Field("data.train_list", "",
          'List file ("path label" a line) or iNaturalist\'s JSON of the training images; empty for a folder.', _PATH,
          SEEN_IN_DATA, _PHOTOGRAPHS),
    Field("data.validation_list", "",
          "The same for validation; looked for as given, then in data.dir and its folders.", _PATH, SEEN_IN_DATA,
          _PHOTOGRAPHS, hints=("val_list",)),
    Field("data.test_list", "", "The same for the test.", _PATH, SEEN_IN_DATA, _PHOTOGRAPHS),
    Field("data.test_share", 0.2, "Share of each class held out for the test where no test split is there.", _SHARE,
          FIXED, _PHOTOGRAPHS),
    Field("data.validation_share", 0.1, "Share of each class then held out for validation, too.", _SHARE, FIXED,
          _PHOTOGRAPHS, hints=("val_share", "val_split")),
    Field("data.image_size", 224, "Pixels of a side of the images that the network sees.", _COUNT, FIXED,
          _PHOTOGRAPHS, hints=("imgsz", "img_size", "input_size", "crop_size", "resolution")),
    Field("data.resize", _resize_of,
          "Pixels of the shorter side before an evaluation cuts out the centre; image_size * 256/224 unless it is set.",
          _COUNT, FIXED, _PHOTOGRAPHS),
    Field("data.min_area", 0.08, "Smallest share of a photograph that a random crop takes.", _FRACTION, FIXED,
          _PHOTOGRAPHS),
    Field("data.mean", (0.485, 0.456, 0.406), "Mean of pixels / 255 by channel; those of ImageNet.",
          _numbers(lambda v: True, "three numbers", 3), FIXED, _PHOTOGRAPHS),
    Field("data.std", (0.229, 0.224, 0.225), "Standard deviation of pixels / 255 by channel; those of ImageNet.",
          _numbers(lambda v: v > 0, "three numbers above 0", 3), FIXED, _PHOTOGRAPHS),
    Field("data.skip_unreadable", False,
          "Leave out training images that cannot be read, found by reading all of them once; else stop at one.",
          _SWITCH, SEEN_IN_DATA, _PHOTOGRAPHS),
    Field("data.layout", "auto",
          "Layout of data.dir: auto sees splits in it, classes takes each sub-folder as a class.",
          choice("auto", "classes"), SEEN_IN_DATA, _PHOTOGRAPHS),
    Field("data.skip_other_files", False, "Go on where a tenth of a class's files are no images.", _SWITCH,
          SEEN_IN_DATA, _PHOTOGRAPHS),
    Field("data.max_megapixels", 179.0, "Megapixels of an image above which it counts as unreadable.",
          Bound(lambda v: 0 < v <= 10**5, "a number of megapixels above 0, at most 100000"), SEEN_IN_DATA,
          _PHOTOGRAPHS),
    Field("data.threads", 0, "Threads that decode images; 0 for one a core.",
          _at_least(0, "a number of threads, or 0 for one a core"), FREE, _PHOTOGRAPHS),
    Field("data.workers", 0, "Processes that decode images instead of threads; 0 for threads.",
          _at_least(0, "a number of processes, or 0 for threads"), FREE, _PHOTOGRAPHS,
          hints=("num_workers", "n_workers")),
)

_OPTIM = (
    Field("optim.name", "sgd", 'Optimiser: sgd, one of optax (adamw, lamb, lion, ...), or "module:function".',
          "training/optim.py refuses an optimiser that it does not have", hints=("optimizer", "optimiser", "opt")),
    Field("optim.learning_rate", 0.1, "Peak of the learning rate.", above(0), hints=("lr", "lr0", "base_lr")),
    Field("optim.momentum", 0.9, "Momentum of SGD and of other optimisers that take one.",
          Bound(lambda v: 0 <= v < 1, "at least 0 and below 1")),
    Field("optim.weight_decay", 2e-4,
          "Weight decay: of sgd added to the gradient; of others as optax does it, where they take one.", _at_least(0),
          by_source={"photographs": 1e-4}, hints=("wd", "decay", "l2")),
    Field("optim.decay_biases_and_norms", True,
          "Decay every parameter; False leaves out biases, parameters of norms, position embeddings and class tokens.",
          _SWITCH),
    Field("optim.warmup_epochs", -1.0,
          "Epochs of a linear warm-up; 0 for none; -1 for 5, or a tenth of a run under 50 epochs.",
          _WARMUP,
          by_source={"photographs": 0.0}, hints=("warmup", "warmup_epoch")),
    Field("optim.schedule", "steps",
          'Schedule of the learning rate: steps, cosine, cosine_restarts, constant, or "module:function".',
          "training/schedules.py refuses a schedule that it does not have",
          hints=("scheduler", "lr_scheduler", "lr_schedule")),
    Field("optim.decay_at", (0.8, 0.9), "Fractions of the run after which the rate falls in steps.",
          Bound(_rising_fractions, "rising fractions of the run, such as (0.8,0.9)"),
          hints=("milestones", "lr_steps")),
    Field("optim.decay_factor", 0.01, "Factor of the rate at each step.", _FRACTION, hints=("lr_decay",)),
)

_MACHINE = (
    Field("parallel.devices", 0, "How many devices of each process to use; 0 for all.",
          _at_least(0, "a number of devices, or 0 for all"), FREE, hints=("gpus", "num_gpus", "gpu", "device")),
    Field("parallel.spmd", "shard_map", "How a step is put on the devices; the update is the same.",
          choice("shard_map", "pmap"), FREE, old="parallel.how"),
    Field("parallel.cpu_threads", 0, "Threads of XLA on this machine; 0 for one a core. $NPROC goes before it.",
          _at_least(0, "a number of threads, or 0 for all"), FREE, old="parallel.cores"),
    Field("parallel.ops", "auto",
          "Backend of the layers: cpu_kernels (programs made for this CPU), accelerator (own gradients, GPUs), "
          "pallas (own kernels, GPUs, not measured yet), xla; auto takes the one for the devices, never pallas.",
          choice("auto", "cpu_kernels", "accelerator", "pallas", "xla"), FREE, old="parallel.native",
          new_values={"on": "cpu_kernels", "off": "xla"}),
    Field("parallel.deterministic", False,
          "The same bits at each start on GPUs, as always on CPUs and TPUs: slower; see docs/accelerators.md.", _SWITCH,
          FREE),
    Field("parallel.timeout", 300.0, "Seconds for all processes of a run to come, where there are several.",
          above(0), FREE),
    Field("parallel.notice", 0.0,
          "Seconds from the signal to stop to the end of the machine: no save that takes longer is begun; 0: unknown.",
          _at_least(0, "a number of seconds, or 0 if it is not known"), FREE),
    Field("parallel.batch_norm", "global",
          "Statistics of the whole batch (global), or of each device's share (device).", choice("global", "device"),
          hints=("sync_bn",)),
    Field("checkpoint.every", 5, "Epochs between checkpoints.", _at_least(1, "at least 1 epoch"), FREE,
          hints=("save_every", "save_freq", "save_period")),
    Field("checkpoint.seconds", -1.0,
          "Least seconds between checkpoints, but for the last; -1 for the usual: 0 on CPUs, 30 on accelerators.",
          Bound(lambda v: math.isfinite(v) and (v >= 0 or v == -1), "a number of seconds, 0 for none, or -1"), FREE),
    Field("checkpoint.keep", 2, "How many of the newest checkpoints stay.",
          _at_least(2, "at least 2, for one checkpoint may be damaged"), FREE),
)
# fmt: on

FIELDS = {field.name: field for field in (*_RUN, *_DATA, *_SOURCES, *_OPTIM, *_MACHINE)}

# Groups that hold the options of functions, by option, and are empty at first.
OPTIONS = {
    "network_options": "Options of the network, such as config.network_options.drop_path=.1 of vit_s16.",
    "optim.options": "Options of the optimiser, such as config.optim.options.b2=.95 of adamw.",
    "optim.schedule_options": "Options of the schedule, such as config.optim.schedule_options.growth=1.",
    "data.augment_options": "Options of augmentations by name, such as random_erasing.probability=.5.",
}

# Help of the entries that a recipe puts into config.method and its stages.
METHOD_ENTRIES = {
    "name": "Name of the recipe.",
    "head": 'The network\'s last layer: linear, scaled, cosine, or "module:Class".',
    "posthoc": "Function of methods/posthoc.py that changes the trained model's logits, and its options.",
    "begin": "Start of the stage as a fraction of the run; 1 for a stage after it.",
    "epochs": "Length of a stage after the run.",
    "loss": 'Function of methods/losses.py, or "module:function", and its options.',
    "mixer": "Function of methods/mixing.py, and its options.",
    "pair_sampler": "Function of data/pairs.py that chooses the second image of a pair, and its options.",
    "sampler": "Function of data/sampling.py: instance_balanced or class_balanced.",
    "class_weight": "Function of priors.py that weighs the classes, and its options.",
    "reduction": "Divisor of the sum of weighted losses: weights (their sum) or count.",
    "lr_multipliers": "Factors of the learning rate for backbone, classifier and scale; 0 freezes.",
    "batch_norm": "train, or frozen: the network runs as in evaluation; running statistics stay, nothing is dropped.",
    "reinitialise": "Draw the classifier anew when the stage begins.",
    "schedule": 'run (that of config.optim), a schedule as optim.schedule, or "module:function", with its options.',
}


def is_option(name: str) -> bool:
    """Return whether a dotted name is in a group of `OPTIONS`."""
    return any(name.startswith(f"{group}.") for group in OPTIONS)


def of_source(source: str) -> list[Field]:
    """Return the fields that a config for a data source has, in the order of their declaration."""
    return [field for field in FIELDS.values() if not field.sources or source in field.sources]
