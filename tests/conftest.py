"""What holds for all tests."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Torch in this process has one thread, as each rank of the tests has: small matrices only lose by being shared
    out, and other numbers of threads give other bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
