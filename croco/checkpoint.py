"""Reading and writing weights safely: nothing stored in a file is ever executed.

Understood are
- official training files `.pth`: a dict with `model` (weights) and `args` (an `argparse.Namespace` whose
  `model` is a constructor call as text) or `croco_kwargs`; unpickled with torch's restricted unpickler, the
  text parsed as literals;
- Hub folders: `config.json` (constructor arguments) and `model.safetensors`;
- our own `.safetensors`: constructor arguments as JSON in the metadata under "config".
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from croco.expression import parse_call

Weights = dict[str, Tensor]

OFFICIAL_NAMES = (
    "CroCo",
    "CroCo_V2_ViTBase_SmallDecoder",
    "CroCo_V2_ViTBase_BaseDecoder",
    "CroCo_V2_ViTLarge_BaseDecoder",
    "DUSt3R_ViTLarge_BaseDecoder_224_linear",
    "DUSt3R_ViTLarge_BaseDecoder_512_linear",
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt",
    "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",
)

# parts that only one architecture of the family has, most specific first
_MARKERS = (
    (".head_local_features.", "AsymmetricMASt3R"),
    ("downstream_head", "AsymmetricCroCo3DStereo"),
    ("prediction_head.", "CroCoNet"),
)

# what official training files hold besides tensors: the arguments, and a best score as NumPy scalar
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
]


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, unsafe, or belongs to another model."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file.

    Attributes:
        source: Where it was read, for messages.
        weights: Tensors by state-dict key; possibly mapped from the file.
        architecture: Class name of the model; guessed from the keys when the file does not tell.
        kwargs: Constructor arguments, or None if the file holds none.
    """

    source: str
    weights: Weights
    architecture: str | None
    kwargs: dict[str, Any] | None


@dataclass(frozen=True)
class LoadOptions:
    """How to load a pretrained model.

    Attributes:
        device: Where to put the weights, default CPU.
        dtype: Floating dtype of the weights; default as stored, but half precision becomes float32.
        mmap: Keep the weights mapped from the file: loading is instant and memory is shared between
            processes, but the file must not be overwritten while the model lives.
        revision: Hub revision.
        cache_dir: Hub cache folder.
        local_files_only: Never contact the Hub.
        token: Hub access token.
        force_download: Download again even if cached.
    """

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    mmap: bool = False
    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    force_download: bool = False


@dataclass(frozen=True)
class Adaptation:
    """How one model class takes weights.

    Attributes:
        forced: Constructor arguments that loading sets whatever the file says (an explicit argument of the
            caller still wins).
        adapt: Completes or renames the weights before they meet the model.
        packaged: Folder with weights shipped as `<name>.safetensors`, or None.
    """

    forced: Mapping[str, Any] = field(default_factory=dict)
    adapt: Callable[[Weights], Weights] = dict
    packaged: Path | None = None


class Storable(Protocol):
    """A model class whose instances remember their constructor arguments."""

    architecture: ClassVar[str]
    config: dict[str, Any]


ModelT = TypeVar("ModelT", bound=nn.Module)


def load_pretrained(cls: type[ModelT], name: str | Path, *, adaptation: Adaptation | None = None, **kw: Any) -> ModelT:
    """Load a model of class `cls`.

    Args:
        cls: Model class with an `architecture` name.
        name: Official checkpoint name, Hub id 'owner/name', folder, or file.
        adaptation: How the class takes weights.
        **kw: Fields of `LoadOptions`; anything else overrides a stored constructor argument.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: If the source is missing, damaged, unsafe, or holds another architecture.
    """
    adaptation = adaptation or Adaptation()
    names = {option.name for option in fields(LoadOptions)}
    options = LoadOptions(**{key: value for key, value in kw.items() if key in names})
    checkpoint = read_checkpoint(find_checkpoint(name, options, packaged=adaptation.packaged))
    overrides = {**adaptation.forced, **{key: value for key, value in kw.items() if key not in names}}
    model = build_empty(cls, checkpoint, overrides)
    weights = adaptation.adapt(checkpoint.weights)
    fill_model(model, weights, options, source=checkpoint.source)
    return model.eval()


def find_checkpoint(name: str | Path, options: LoadOptions, *, packaged: Path | None = None) -> Path:
    """The local file or folder a name stands for, downloaded from the Hub if need be.

    Raises:
        CheckpointError: If nothing is found.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if packaged is not None and (packaged / f"{name}.safetensors").is_file():
        return packaged / f"{name}.safetensors"
    hub_id = f"naver/{name}" if str(name) in OFFICIAL_NAMES else str(name)
    if path.suffix in (".pth", ".pt", ".safetensors") or not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise CheckpointError(
            f"no weights at {str(name)!r}: give an existing file or folder, a Hub id 'owner/name', or one of "
            f"{', '.join(OFFICIAL_NAMES)}."
        )
    return _download(hub_id, options)


def _download(hub_id: str, options: LoadOptions) -> Path:
    from huggingface_hub import hf_hub_download  # slow import, needed only here

    common = {
        "revision": options.revision,
        "cache_dir": options.cache_dir,
        "local_files_only": options.local_files_only,
        "token": options.token,
        "force_download": options.force_download,
    }
    try:
        hf_hub_download(hub_id, "config.json", **common)
        return Path(hf_hub_download(hub_id, "model.safetensors", **common)).parent
    except Exception as error:  # the network stack below raises a dozen unrelated types
        reason = _first_sentence(error)
        raise CheckpointError(
            f"cannot get {hub_id!r} from the Hugging Face Hub ({reason}); check the name and the "
            "connection, or download the weights elsewhere and pass their path."
        ) from error


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a weights file or Hub folder; tensors stay mapped from the file where the format allows.

    Raises:
        CheckpointError: If it is missing, damaged or unsafe.
    """
    path = Path(path)
    if path.is_dir():
        return _read_safetensors(path / "model.safetensors")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_pickle(path)


def _checkpoint(path: Path, weights: Weights, architecture: str | None, kwargs: dict[str, Any] | None) -> Checkpoint:
    if architecture is None:
        matches = (name for part, name in _MARKERS if any(part in key for key in weights))
        architecture = next(matches, None)
    return Checkpoint(str(path), weights, architecture, kwargs)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); download it again.") from error
    try:
        if "config" in metadata:
            config = json.loads(metadata["config"])
            return _checkpoint(path, weights, str(config["cls"]), _tuples(dict(config["kwargs"])))
        sibling = path.with_name("config.json")
        kwargs = _tuples(dict(json.loads(sibling.read_text()))) if sibling.is_file() else None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"the model description of {path} is damaged ({error}); download it again.") from error
    return _checkpoint(path, weights, None, kwargs)


def _tuples(value: Any) -> Any:
    """JSON lists as tuples, recursively: constructor arguments of the family are tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _read_pickle(path: Path) -> Checkpoint:
    content = unpickle(path)
    weights = content.get("model")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds no weights under the key 'model'; is it a checkpoint of this family?")
    if isinstance(content.get("croco_kwargs"), dict):
        return _checkpoint(path, weights, "CroCoNet", content["croco_kwargs"])
    text = getattr(content.get("args"), "model", None) or content.get("model_name")
    if not isinstance(text, str):
        return _checkpoint(path, weights, None, None)
    try:
        architecture, kwargs = parse_call(text)
    except ValueError as error:
        raise CheckpointError(f"the model description of {path} is not understood: {error}") from error
    return _checkpoint(path, weights, architecture, kwargs)


def unpickle(path: str | Path) -> dict[str, Any]:
    """Read a `torch.save` dict of tensors, plain values and `argparse.Namespace`, restricted to these.

    Raises:
        CheckpointError: If the file is missing or damaged, or asks for any other object. Nothing is executed.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused, nothing in it was executed: {_culprit(error)}; take only weights saved by "
            "torch.save as tensors and plain values."
        ) from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        reason = _first_sentence(error)
        raise CheckpointError(f"{path} cannot be read ({reason}); it may be truncated, download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict with the key 'model'.")
    return content


def _first_sentence(error: Exception) -> str:
    text = str(error).strip()
    return re.split(r"\n|\. ", text)[0] if text else type(error).__name__


def _culprit(error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it contains the object {found.group(1)}" if found else "it is no plain weights file"


def build_empty(cls: type[ModelT], checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> ModelT:
    """Build the model of a checkpoint on the meta device: no memory, no initialisation.

    Raises:
        CheckpointError: If the checkpoint holds another architecture or no usable constructor arguments.
    """
    wanted = getattr(cls, "architecture", cls.__name__)
    if checkpoint.architecture not in (None, wanted):
        raise CheckpointError(
            f"{checkpoint.source} holds a model of class {checkpoint.architecture!r}, not {wanted!r}; "
            "load it with its own class."
        )
    if checkpoint.kwargs is None and wanted != "CroCoNet":  # CroCo v1 files hold none: class defaults
        raise CheckpointError(f"{checkpoint.source} does not say how to build the model; a config is missing.")
    kwargs = {**(checkpoint.kwargs or {}), **overrides}
    depth = max((value for key, value in kwargs.items() if key.endswith("_depth")), default=0)
    if not isinstance(depth, int) or depth > len(checkpoint.weights):
        raise CheckpointError(f"{checkpoint.source} asks for {depth} blocks, more than it has weights for.")
    try:
        with torch.device("meta"):
            return cls(**kwargs)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{checkpoint.source} does not describe a valid {wanted}: {error}") from error


def alias_groups(model: nn.Module) -> list[list[str]]:
    """State-dict keys of each parameter or buffer; several where a module has several names, sorted."""
    groups: dict[int, list[str]] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(value), []).append(key)
    return [sorted(keys) for keys in groups.values()]


def with_aliases(model: nn.Module, weights: Weights) -> Weights:
    """`weights` completed so that every name of a shared parameter is present if one of them is."""
    completed = dict(weights)
    for keys in alias_groups(model):
        present = next((key for key in keys if key in weights), None)
        if present is not None:
            completed.update({key: weights[present] for key in keys})
    return completed


def fill_model(model: nn.Module, weights: Weights, options: LoadOptions, *, source: str) -> None:
    """Give a model built by `build_empty` its weights.

    Raises:
        CheckpointError: If keys are missing or unexpected, or shapes differ.
    """
    own = model.state_dict()
    weights = with_aliases(model, weights)
    _check_keys(own.keys() - weights.keys(), weights.keys() - own.keys(), source)
    wrong = [key for key, value in own.items() if value.shape != weights[key].shape]
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{source}: {len(wrong)} weights have another shape than the model, first {key} "
            f"{tuple(weights[key].shape)} instead of {tuple(own[key].shape)}; wrong constructor arguments?"
        )
    placed: dict[int, Tensor] = {}  # one copy of a tensor with several names
    for key in own:
        tensor = weights[key]
        if id(tensor) not in placed:
            placed[id(tensor)] = _place(tensor, options)
        own[key] = placed[id(tensor)]
    model.load_state_dict(own, assign=True)


def _check_keys(missing: Iterable[str], unexpected: Iterable[str], source: str) -> None:
    for problem, keys in (("lacks", sorted(missing)), ("has too many:", sorted(unexpected))):
        if keys:
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise CheckpointError(f"{source} {problem} {len(keys)} weights ({shown}); does it belong to this model?")


def _place(tensor: Tensor, options: LoadOptions) -> Tensor:
    """A tensor on its device in its dtype; a private copy of the file's bytes unless mapping is wanted."""
    dtype = tensor.dtype
    if dtype.is_floating_point:
        dtype = options.dtype or (torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype)
    moved = tensor.to(device=options.device, dtype=dtype)
    return moved.clone() if moved is tensor and not options.mmap else moved


def save_safetensors(
    model: nn.Module,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model with its constructor arguments; the file appears whole or not at all.

    Args:
        model: A model that remembers its constructor arguments in `config` and has an `architecture` name.
        path: Target file, replaced if it exists.
        dtype: Floating dtype to store, default that of the model.
        metadata: Further text entries for the file's metadata.

    Raises:
        CheckpointError: If the model cannot be described by literals.
    """
    path = Path(path)
    state = model.state_dict()
    weights = {keys[0]: state[keys[0]].detach() for keys in alias_groups(model)}
    weights = {
        key: value.to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for key, value in weights.items()
    }
    entries = {**(metadata or {}), "format": "pt", "config": describe(model)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.touch()
    mode = temporary.stat().st_mode  # that of ordinary files here; save_file makes its file private
    try:
        save_file(weights, temporary, metadata=entries)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def describe(model: nn.Module) -> str:
    """The class name and constructor arguments of a model as JSON (infinities as bare `Infinity`)."""
    config, architecture = getattr(model, "config", None), getattr(model, "architecture", None)
    try:
        if config is None or architecture is None:
            raise TypeError("it has no config")
        return json.dumps({"cls": architecture, "kwargs": config}, sort_keys=True)
    except TypeError as error:
        raise CheckpointError(f"cannot describe a {type(model).__name__} in a file: {error}.") from error
