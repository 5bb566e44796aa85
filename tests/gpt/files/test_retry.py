"""Reads that the kernel refuses for a while, in real processes."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gpt.errors import ConfigError, DiskFull, MachineFault, file_error
from gpt.files.retry import retried
from gpt.token_files.files import TokenFileWriter

READ = """
import sys
from pathlib import Path
from gpt.errors import ConfigError
from gpt.token_files.corpus import open_tokens
try:
    print(open_tokens(Path(sys.argv[1])).read(0, 4).tolist())
except ConfigError as error:
    print(error)
    sys.exit(error.exit_status)
"""


@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
@pytest.mark.parametrize("ending", ["bin", "sums"])
@pytest.mark.parametrize("persists", [False, True])
def test_tokens_are_read_again_after_an_error_of_the_disk(tmp_path, ending, persists):
    with TokenFileWriter(tmp_path / "train", vocab_size=9) as writer:
        writer.add_document(np.array([1, 2, 3, 4]))
    when = "1+" if persists else "1"
    call = "preadv,preadv2" if ending == "bin" else "pread64"
    fault = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", tmp_path / f"train.{ending}"]
    fault += ["-e", f"inject={call}:error=EIO:when={when}"]
    fast = READ.replace("import sys\n", "import sys, time\ntime.sleep = lambda _: None\n", 1)
    done = subprocess.run([*fault, sys.executable, "-c", fast, tmp_path / "train"], capture_output=True, text=True)
    if persists:
        assert done.returncode == MachineFault.exit_status == 1, done.stderr
        assert f"train.{ending}" in done.stdout
        assert "Input/output error" in done.stdout
    else:
        assert (done.returncode, done.stdout) == (0, "[1, 2, 3, 4]\n"), done.stderr


def test_only_faults_that_may_pass_are_tried_again():
    for number, tries in ((errno.EIO, 3), (errno.ESTALE, 3), (errno.ENOSPC, 1), (errno.ENOENT, 1), (errno.EACCES, 1)):
        calls = []

        def refuse(number=number, calls=calls):
            calls.append(number)
            raise OSError(number, os.strerror(number))

        with pytest.raises(OSError, match=os.strerror(number)):
            retried(refuse, pauses_s=(0.0, 0.0))
        assert len(calls) == tries


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        *((errno.EIO, MachineFault), (errno.ESTALE, MachineFault), (errno.ETIMEDOUT, MachineFault)),
        *((errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull)),
        *((errno.EACCES, ConfigError), (errno.ENOENT, ConfigError), (errno.EROFS, ConfigError)),
    ],
)
def test_the_status_tells_a_fault_of_the_machine_from_a_mistake(number, kind):
    found = file_error(OSError(number, "no"), "x")
    assert type(found) is kind
    assert found.exit_status == (2 if kind is ConfigError else 1)
