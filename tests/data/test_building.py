"""Memory while images are decoded, measured in processes of their own."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_set(tmp_path):
    """96 MiB of pixels from one small file under many names; measured in a process of its own."""
    folder = tmp_path / "set"
    folder.mkdir()
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(folder / "0000.png")
    for n in range(1, 512):
        os.link(folder / "0000.png", folder / f"{n:04}.png")
    script = (
        "import sys; from pathlib import Path; from genflow.data.folder import image_folder;"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]);"
        "image_folder(sys.argv[1] + '/few', cache=Path(sys.argv[2])); few = peak();"
        "image_folder(sys.argv[1] + '/set', cache=Path(sys.argv[2])); print(peak() - few)"
    )
    (tmp_path / "few").mkdir()
    for n in range(48):
        os.link(folder / "0000.png", tmp_path / "few" / f"{n:04}.png")
    command = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 16 * 1024, "KiB"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_one_image_a_thread_where_the_first_is_smaller(tmp_path):
    """Groups are sized by the first image; 63 images of 3 MB in a group would be 192 MB a thread."""
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "000.png")
    Image.new("RGB", (1000, 1000)).save(folder / "001.png")
    for n in range(2, 130):
        os.link(folder / "001.png", folder / f"{n:03}.png")
    script = (
        "import sys; from pathlib import Path; from genflow.data.folder import image_folder;"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]);"
        "before = peak()\n"
        "try: image_folder(sys.argv[1], cache=Path(sys.argv[2]))\n"
        "except ValueError as error: print(error)\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    said, peak = done.stdout.splitlines()
    assert "001.png is 1000x1000 RGB" in said
    assert int(peak) < 80 * 1024, "KiB"
