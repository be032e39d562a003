"""Find the file that --config names, and make a config of it: a Python file, config.json of a run, or YAML."""

import importlib.util
import logging
import pathlib
from typing import TYPE_CHECKING, Any

from unimix_jax import registry, storage
from unimix_jax.config import build, fields, hints, old_names
from unimix_jax.config.compare import flat
from unimix_jax.errors import UserError, one_of
from unimix_jax.methods.recipes import NEW_ENTRIES, RECIPES

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

_YAML = (".yaml", ".yml")
_LARGEST = 4 * storage.MIB  # of a YAML file
_DEEPEST = 32  # groups around a field, as `storage` reads JSON
_STAGE = RECIPES["erm"]["stages"]["plain"]  # every entry of a stage
_FUNCTIONS = tuple(entry for entry in _STAGE if entry in registry.KINDS and entry != "schedule")
_KINDS = "a Python file (.py), config.json of a run, or a YAML file (.yaml)"


def find_config(name: str) -> pathlib.Path:
    """Return the file that --config names: the path itself, or a shipped config of that name.

    Args:
      name: a path, or the name of a shipped config with or without ".py".

    Raises:
      UserError: it is not there, or of another kind.
    """
    path = pathlib.Path(name)
    if path.is_file():
        if path.suffix not in (".py", ".json", *_YAML):
            raise UserError(f"--config names {name}, which is not a Python file; it must be {_KINDS}")
        return path
    tail = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    for root in _config_roots():
        if tail.name and (shipped := root / tail.with_suffix(".py")).is_file():
            return shipped
    if (path / "config.json").is_file():
        raise UserError(f"--config names {name}, which is a folder; the config of the run in it is {name}/config.json")
    what = "is a folder" if path.is_dir() else "is not there"
    raise UserError(f"--config names {name}, which {what}; shipped: {', '.join(shipped_configs())}")


def shipped_configs() -> list[str]:
    """Return the file names of the configs that come with the project, sorted."""
    return sorted({path.name for root in _config_roots() for path in root.glob("[!_]*.py")})


def run_name(path: pathlib.Path, config: "ConfigDict") -> str:
    """Return the name that a new run directory begins with.

    Args:
      path: of the config file.
      config: the config that was made of it.
    """
    return f"{config.data.source}-{config.method.get('name', 'run')}" if path.suffix == ".json" else path.stem


def load(path: pathlib.Path, text: str | None) -> "ConfigDict":
    """Make the config of a file.

    Args:
      path: of `find_config`.
      text: what stands after the colon of --config; None where there is none.

    Returns:
      A ConfigDict; old names of fields are replaced by the new ones, with a logged sentence.

    Raises:
      UserError: the file is no config.
    """
    if path.suffix == ".py":
        config = _run_file(path, text)
        try:
            with config.unlocked():
                old_names.warn(str(path), old_names.rename(config))
        except TypeError as error:
            raise UserError(f"{path}: {' '.join(str(error).split())}") from None
        _check_method(config, path)
        return config
    if text is not None:
        raise UserError(f"{path} takes no arguments after a colon, only a Python file does; set its fields instead")
    values = storage.read_json(path) if path.suffix == ".json" else _read_yaml(path)
    if isinstance(values.get("method"), str):  # the short form of its field `name`, beside which others may stand
        values["method"] = {"name": values["method"]}
    values = _without_dots(values, path)
    names = flat(values)
    for old in names:
        if (new := old_names.new_field(old)) != old and new in names:
            raise UserError(f"{path} sets {old} and {new}, which is its new name; keep the new one")
    values, renamed = old_names.with_new_names(values)
    old_names.warn(str(path), renamed)
    config = _from_values(values, path)
    _check_method(config, path)
    return config


def _config_roots() -> tuple[pathlib.Path, ...]:
    package = pathlib.Path(__file__).resolve().parents[1]
    return package / "configs", package.parent / "configs"  # an installed wheel; a clone


def _run_file(path: pathlib.Path, text: str | None):
    """Run a Python file and return the result of its get_config()."""
    from ml_collections import ConfigDict

    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} has no get_config(); see the shipped configs")
        config = module.get_config() if text is None else module.get_config(text)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{path} is not Python: {' '.join(str(error).split())}") from None
    except Exception as error:  # a config is the user's program and may raise anything
        raise UserError(f"{path} fails with {type(error).__name__}: {error}{_hint(error)}") from None
    if not isinstance(config, ConfigDict) or "stages" not in config.get("method", {}):
        raise UserError(
            f"get_config() in {path} must return a config made by unimix_jax.config.default() and given a method by "
            "use_method()"
        )
    return config


def _hint(error: Exception) -> str:
    """Return what to add to the sentence of an error where a config file reads a field by its old name."""
    if isinstance(error, AttributeError):
        for name, field in old_names.NEW_FIELDS.items():
            last = name.split(".")[-1]
            if f"'{last}'" in str(error) or f'"{last}"' in str(error):
                return f"; config.{name} is now config.{field.name}"
        for old, new in NEW_ENTRIES.items():
            if f"'{old}'" in str(error) or f'"{old}"' in str(error):
                return f"; the entry {old} of a stage is now {new}"
    return ""


def _read_yaml(path: pathlib.Path) -> dict:
    """Return the nested dicts of a YAML file of plain values."""
    import yaml

    text = storage.read_text(path, _LARGEST)
    try:
        # A few names of names can stand for more values than any memory holds.
        if any(isinstance(event, yaml.events.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UserError(f"{path} has aliases (*name), which a config may not have; write the values out")
        if twice := _key_twice(yaml.compose(text, Loader=yaml.SafeLoader)):
            raise UserError(f"{path} has the key {twice} twice")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is no YAML of plain values: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not _text_keys(values):
        raise UserError(f"{path} must hold names of fields with their values, such as 'epochs: 10'")
    return values


def _key_twice(node) -> str:
    """Return a key that a mapping of a YAML tree has twice, "" if there is none: YAML would drop the first one."""
    pairs = node.value if getattr(node, "id", "") == "mapping" else []
    keys = [key.value for key, _ in pairs if isinstance(key.value, str)]
    twice = next((key for key in keys if keys.count(key) > 1), "")
    return twice or next(filter(None, (_key_twice(value) for _, value in pairs)), "")


def _text_keys(values: dict) -> bool:
    return all(isinstance(k, str) and (not isinstance(v, dict) or _text_keys(v)) for k, v in values.items())


def _without_dots(values: dict, path: pathlib.Path) -> dict:
    """Return nested dicts for names of fields that may be dotted, as on the command line: `data.source: digits`.

    Raises:
      UserError: a field is there twice.
    """
    result = {}
    for key, value in values.items():
        *groups, last = key.split(".")
        if len(groups) > _DEEPEST:
            raise UserError(f"{path} has a key of {len(groups) + 1} parts, {key[:40]}...; no field has so many")
        value = _without_dots(value, path) if isinstance(value, dict) else value
        for name in (last, *reversed(groups)):
            value = {name: value}
        _merge(result, value, "", path)
    return result


def _merge(values: dict, others: dict, where: str, path: pathlib.Path) -> None:
    """Put nested dicts into others, in place; `where` is the dotted name of their group, with a dot."""
    for name, value in others.items():
        if name not in values:
            values[name] = value
        elif isinstance(values[name], dict) and isinstance(value, dict):
            _merge(values[name], value, f"{where}{name}.", path)
        else:
            raise UserError(f"{path} sets {where}{name} twice, nested and by a dotted key; keep one of them")


def _from_values(values: dict, path: pathlib.Path):
    """Make a config of nested dicts: fields that are not there have their defaults."""
    from ml_collections import ConfigDict

    config = build.default()
    data = values.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    if not isinstance(source, str):
        raise UserError(f"{path} names no data source; it must have the field data.source")
    build.use_source(config, source)
    others = flat({k: v for k, v in values.items() if k != "method"})
    for name, value in others.items():
        if name in fields.FIELDS:
            _set(config, fields.FIELDS[name], value, source, path)
        elif fields.is_option(name):
            group, last = _group_of(config, name)
            group[last] = tuple(value) if isinstance(value, list) else value
        else:
            _add(config, name, value, path)
    method = values.get("method")
    if not isinstance(method, dict) or not isinstance(method.get("name"), str):
        raise UserError(f"{path} has no method; it must have the field method with a name, such as 'method: erm'")
    of_run = _is_of_run(values, path)
    try:
        method = method if of_run else _with_types(method)
        if complete := of_run or _is_complete(method):
            config.method = ConfigDict({key: RECIPES["erm"][key] for key in ("head", "posthoc")} | method)
        else:
            own = f"; a method of your own has a first stage with {', '.join(_FUNCTIONS)}" if "stages" in method else ""
            one_of("method", method["name"], RECIPES, own)
            build.use_method(config, method["name"], changes=method)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for name, value in others.items():
        if name in fields.FIELDS and not complete:  # again: what the file says goes before what the recipe says
            _set(config, fields.FIELDS[name], value, source, path)
    return config


def _is_of_run(values: dict, path: pathlib.Path) -> bool:
    """Return whether a file is config.json of a run, whose method is taken as it is: recipes may change."""
    groups = {name.partition(".")[0] for name in fields.FIELDS if "." in name}
    return path.suffix == ".json" and groups <= values.keys() and set(build.METHOD) <= values["method"].keys()


def _is_complete(method: dict) -> bool:
    """Return whether a method needs no recipe: a stage has every entry; or it has a new name and all functions."""
    stages = method.get("stages")
    if not stages:
        return False
    first = min(stages.values(), key=lambda stage: stage.get("begin", 0.0))
    own = method["name"] not in RECIPES and first.keys() >= {*_FUNCTIONS}
    if complete := own or any(stage.keys() >= _STAGE.keys() for stage in stages.values()):
        build.check_entries(method, stages)
    return complete


def _with_types(method: dict) -> dict:
    """Return a method whose values have the types of those of its recipe, as fields have: 1 is 1.0, 2e-1 is no text.

    Raises:
      UserError: a group is something else, or a value has another type.
    """
    recipe = RECIPES.get(method["name"], {})
    build.check_groups(method)
    before = {name: registry.inherit(_STAGE, stage) for name, stage in recipe.get("stages", {}).items()}
    before = {"stages": {name: before.get(name, _STAGE) for name in method.get("stages", {})}}
    before = {key: recipe.get(key, RECIPES["erm"][key]) for key in ("head", "posthoc")} | before
    before["name"] = method["name"]
    return _typed(before, method, "config.method")


def _typed(before: Any, value: Any, what: str) -> Any:
    """Return a value, or nested dicts of values, as the types of those before; where none was, as it is."""
    if isinstance(value, dict) and (before is None or isinstance(before, dict)):
        before = before or {}
        if "name" in before and value.get("name", before["name"]) != before["name"]:
            before = {}  # the options are those of another function
        return {key: _typed(before.get(key), each, f"{what}.{key}") for key, each in value.items()}
    return value if before is None or isinstance(before, dict) else _as_type_of(before, value, what)


def _check_method(config, path: pathlib.Path) -> None:
    """Refuse a method that has not the form of a recipe."""
    try:
        build.check_groups({"posthoc": None, "stages": None} | config.method.to_dict())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for name in ("name", "head"):
        if not isinstance(config.method.get(name), str):
            raise UserError(f"{path}: config.method.{name} is {config.method.get(name)!r}; it must be a text")
    if "name" not in config.method.posthoc:
        raise UserError(f"{path}: config.method.posthoc has no name; it must name a function, or be none")


def _set(config, field: fields.Field, value: Any, source: str, path: pathlib.Path) -> None:
    if field.sources and source not in field.sources:
        raise UserError(f"{path} sets {field.name}, which the data source {source!r} does not have")
    group, last = _group_of(config, field.name)
    before = group[last]
    value = _as_type_of(before, value, f"{path}: {field.name}")
    if before != value:  # else a value that follows another field still follows it
        group[last] = value


def _add(config, name: str, value: Any, path: pathlib.Path) -> None:
    """Add a field that no declaration has: a run may have had it from its own config file."""
    if path.suffix != ".json":
        raise UserError(f"{path}: {hints.unknown_field(name, config)}")
    _log.warning("%s sets config.%s, which is no field of this version; it is kept as it is", path, name)
    try:
        group, last = _group_of(config, name)
        group[last] = tuple(value) if isinstance(value, list) else value
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} sets {name}, where a field of that name holds no fields") from None


def _group_of(config, name: str):
    """Return the group of a dotted field, which is made where it is not there, and the last part of the name."""
    *groups, last = name.split(".")
    for part in groups:
        if part not in config:
            config[part] = type(config)()
        config = config[part]
    return config, last


def _as_type_of(default: Any, value: Any, what: str) -> Any:
    """Return a value of JSON or YAML as the type of a field's default.

    Raises:
      UserError: it has another type.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, float) and isinstance(value, str):  # YAML takes 2e-4, without a point, for a text
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(default, float) and number:
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool):
        return value
    hint = ""
    if isinstance(default, str) and isinstance(value, bool):
        hint = "; YAML reads on, off, yes and no as true and false, so put the word in quotes"
    raise UserError(f"{what} is {value!r}; it must be {hints.type_words(default)}{hint}")
