"""Importing this module prepares the historic import names of the family (see `dust3r.utils.path_to_croco`).

`dust3r` itself is a regular package here and needs no preparation.
"""

from __future__ import annotations

from dust3r.utils.path_to_croco import register_models_alias

register_models_alias()
