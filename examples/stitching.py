"""Can a layer of one network take the place of another's? The script lies with those of the papers.

Run: python examples/stitching.py
"""

import runpy
import sys
from pathlib import Path

PAPERS = Path(__file__).parent / "papers"

if __name__ == "__main__":
    sys.path.insert(0, str(PAPERS))
    runpy.run_path(str(PAPERS / "stitching.py"), run_name="__main__")
