import subprocess
import sys

import pytest
from PIL import Image

from eosin.core.errors import EosinError
from eosin.synthetic import TISSUES
from eosin.synthetic.sheet import contact_sheet


def test_a_sheet_shows_every_tissue():
    sheet = contact_sheet(slides=2, size=32)
    assert sheet.width == 34 * len(TISSUES)
    assert sheet.height > 68
    with pytest.raises(EosinError, match=r"^slides: "):
        contact_sheet(slides=0)


def test_the_command_writes_a_labeled_png(tmp_path):
    out = tmp_path / "sheet.png"
    command = [sys.executable, "-m", "eosin.synthetic", "--rows", "1", "--size", "32", "--sheet"]
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    with Image.open(out) as picture:
        assert "synthetic, not real tissue" in picture.text["Description"]
    failed = subprocess.run([*command, str(tmp_path / "no" / "sheet.png")], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("sheet: ")
    assert "Traceback" not in failed.stderr
