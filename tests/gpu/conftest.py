"""Nothing in here runs without a card."""

import pytest

from crusades import nvml


@pytest.fixture(scope="session", autouse=True)
def library():
    """The driver's, on a machine with a card."""
    if not nvml.devices():
        pytest.skip("no NVIDIA card answers here")
    return nvml.load()
