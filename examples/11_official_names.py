"""Code written for the official packages runs as it is: `python examples/11_official_names.py [A B]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dust3r.inference import inference
from dust3r.utils.image import load_images
from mast3r.fast_nn import fast_reciprocal_NNs
from mast3r.loading import shipped_weights
from mast3r.model import AsymmetricMASt3R

SAMPLE = [Path(__file__).parent / "pair" / name for name in ("a.jpg", "b.jpg")]


def main() -> None:
    """Parse, infer, match."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="*", type=Path, default=SAMPLE)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    # An official checkpoint's name or file stands here as well.
    model = AsymmetricMASt3R.from_pretrained(shipped_weights("small"), device=args.device)
    images = load_images([str(path) for path in args.photos], size=224)
    output = inference([(images[0], images[1])], model, args.device, batch_size=1, verbose=False)
    desc1, desc2 = output["pred1"]["desc"][0], output["pred2"]["desc"][0]
    matches1, matches2 = fast_reciprocal_NNs(
        desc1, desc2, subsample_or_initxy1=8, device=args.device, dist="dot", block_size=2**13
    )
    print(f"{len(matches1)} matches in resized pixels, first {matches1[:1].tolist()} and {matches2[:1].tolist()}")
    print(f"points of both photos in camera 1's frame: {tuple(output['pred2']['pts3d_in_other_view'].shape)}")


if __name__ == "__main__":
    main()
