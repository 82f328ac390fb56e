"""What all tests share."""

from hypothesis import HealthCheck, settings

# Cores are shared, so time says nothing about the code under test.
settings.register_profile("wisp", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wisp")
