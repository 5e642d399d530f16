"""Train MASt3R: `python train.py --preset small-224 --minutes 60`, or `torchrun --nproc_per_node 8 train.py`.

Without --train_dataset the pairs are rendered while training. Started again with the same --output_dir, a
run continues where its last checkpoint left it.
"""

from __future__ import annotations

import logging

from mast3r.training import get_args_parser, train

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    train(get_args_parser().parse_args())
