"""The registry of weights: what there is, under which licence, and where it comes from.

    for record in mast3r.list_models():
        print(record.name, record.weights_licence, record.commercial)

The registry contacts nobody and imports neither torch nor the networks.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError, safe_open

from multiview.similarity import ScaleStatus

Architecture = Literal["AsymmetricMASt3R", "AsymmetricCroCo3DStereo", "CroCoNet"]
Availability = Literal["shipped", "local", "downloadable"]

SHIPPED = {"small": "mast3r-small-224"}
"""Short name -> file name (without suffix) of the weights that come with the package."""

OWN_LICENCE = "Apache-2.0"
OFFICIAL_LICENCE = "CC BY-NC-SA 4.0 (non-commercial)"


@dataclass(frozen=True)
class WeightsRecord:
    """One set of weights.

    Attributes:
        name: What `mast3r.load` and the command line take.
        architecture: Class of the network; matching and reconstruction need an "AsymmetricMASt3R".
        image_size: Longer side in pixels of the images it was trained at.
        parameters: Number of weights.
        code_licence: Licence of the code here that runs it.
        weights_licence: Licence of the weights, which is another matter.
        commercial: Whether that licence lets them be used commercially.
        scale_status: Unit of predicted lengths: "metric-predicted" if the training taught metres.
        hub_id: 'owner/name' on the Hugging Face Hub, None if they come with the package.
        summary: What they are, in a few words.
    """

    name: str
    architecture: Architecture
    image_size: int
    parameters: int
    code_licence: str
    weights_licence: str
    commercial: bool
    scale_status: ScaleStatus
    hub_id: str | None
    summary: str

    @property
    def availability(self) -> Availability:
        """Whether they come with the package, lie in the Hub's cache on this machine, or must be downloaded."""
        if self.hub_id is None:
            return "shipped"
        return "local" if _is_cached(self.hub_id) else "downloadable"

    def as_dict(self) -> dict[str, Any]:
        """All fields and the availability, as plain JSON values."""
        return {**asdict(self), "availability": self.availability}


def list_models() -> tuple[WeightsRecord, ...]:
    """All known weights, those that come with the package first."""
    shipped = (_shipped_record(name, stem) for name, stem in SHIPPED.items())
    return (*(record for record in shipped if record is not None), *_OFFICIAL)


def find_record(name: str | Path) -> WeightsRecord | None:
    """The record of a name or Hub id; None if the registry does not know it."""
    known = (record for record in list_models() if str(name) in (record.name, record.hub_id))
    return next(known, None)


def _official(name: str, architecture: Architecture, image_size: int, parameters: int, summary: str) -> WeightsRecord:
    return WeightsRecord(
        name=name,
        architecture=architecture,
        image_size=image_size,
        parameters=parameters,
        code_licence=OWN_LICENCE,
        weights_licence=OFFICIAL_LICENCE,
        commercial=False,
        scale_status="metric-predicted" if name.endswith("_metric") else "arbitrary",
        hub_id=f"naver/{name}",
        summary=summary,
    )


_LARGE = "ViTLarge_BaseDecoder"
_OFFICIAL = (
    _official(
        f"MASt3R_{_LARGE}_512_catmlpdpt_metric", "AsymmetricMASt3R", 512, 688_638_856,
        "pointmaps and descriptors, the published MASt3R",
    ),
    _official(
        f"DUSt3R_{_LARGE}_512_dpt", "AsymmetricCroCo3DStereo", 512, 571_171_208, "pointmaps, the published DUSt3R"
    ),
    _official(
        f"DUSt3R_{_LARGE}_512_linear", "AsymmetricCroCo3DStereo", 512, 532_342_784, "pointmaps, linear head"
    ),
    _official(
        f"DUSt3R_{_LARGE}_224_linear", "AsymmetricCroCo3DStereo", 224, 532_342_784, "pointmaps, linear head"
    ),
    _official(f"CroCo_V2_{_LARGE}", "CroCoNet", 224, 417_918_720, "cross-view completion, to start trainings from"),
    _official("CroCo_V2_ViTBase_BaseDecoder", "CroCoNet", 224, 200_269_824, "cross-view completion"),
    _official("CroCo_V2_ViTBase_SmallDecoder", "CroCoNet", 224, 120_076_288, "cross-view completion"),
    _official("CroCo", "CroCoNet", 224, 120_076_288, "cross-view completion, first version"),
)  # fmt: skip


def _shipped_record(name: str, stem: str) -> WeightsRecord | None:
    """What the file and its card say; None if this copy of the package lacks them."""
    path = Path(str(files("mast3r") / "weights" / f"{stem}.safetensors"))
    try:
        with safe_open(path, framework="np") as file:
            kwargs = json.loads((file.metadata() or {})["config"])["kwargs"]
            parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
        card = json.loads(path.with_suffix(".json").read_text())
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    licence = str(card.get("licence", "unknown"))
    scale = card.get("scale_status")
    return WeightsRecord(
        name=name,
        architecture="AsymmetricMASt3R",
        image_size=max(kwargs["img_size"]),
        parameters=parameters,
        code_licence=OWN_LICENCE,
        weights_licence=licence,
        commercial=licence == OWN_LICENCE,
        scale_status=scale if scale in get_args(ScaleStatus) else "arbitrary",
        hub_id=None,
        summary=f"{stem}, trained on rendered scenes",
    )


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache  # slow import

    return isinstance(try_to_load_from_cache(hub_id, "model.safetensors"), str)
