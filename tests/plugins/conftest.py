"""Puts the third party's distribution (site/) on the path of this session and of its ranks, as an installation would."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SITE = str(Path(__file__).resolve().parent / "site")
sys.path.append(SITE)
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([SITE, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
