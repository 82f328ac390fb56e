"""What all tests share."""

import logging

import pytest
from hypothesis import HealthCheck, settings

# Cores are shared, so time says nothing about the code under test. The same examples in every run: a test that fails
# only sometimes tells nobody anything. `--hypothesis-profile=explore` draws new ones.
settings.register_profile("explore", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("wisp", settings.get_profile("explore"), derandomize=True)
settings.load_profile("wisp")


@pytest.fixture(autouse=True)
def _level_of_logs() -> None:
    """Commands that ran in this process have turned its logs down."""
    logging.getLogger("wisp").setLevel(logging.NOTSET)
