"""The id of a boot."""

import subprocess
import sys

from gpt.files.machine import boot_id


def test_all_processes_of_a_boot_see_one_id():
    code = "from gpt.files.machine import boot_id; print(boot_id())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == boot_id() != ""
