"""Two photos in; 3D, matches and cameras out: on the command line or as a page.

python demo.py a.jpg b.jpg --out scene.glb    writes scene.glb, pictures of matches and depth, and scene.json
python demo.py                                opens the page
"""

from __future__ import annotations

from mast3r.demo import main

if __name__ == "__main__":
    raise SystemExit(main())
