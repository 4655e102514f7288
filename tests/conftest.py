"""The two lanes of the tests: see *Tests* in CONTRIBUTING.md."""

import pytest
from hypothesis import settings

DEFAULT_LANE = "not long"
REPRODUCIBLE = {"deadline": None, "derandomize": True, "database": None}

settings.register_profile("default", max_examples=40, **REPRODUCIBLE)
settings.register_profile("long", max_examples=1000, **REPRODUCIBLE)


def pytest_configure(config):
    settings.load_profile("default" if config.option.markexpr == DEFAULT_LANE else "long")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Tests that explore are in both lanes."""
    if config.option.markexpr == DEFAULT_LANE:
        return
    for item in items:
        if item.get_closest_marker("explores"):
            item.add_marker("long")


@pytest.fixture(scope="session")
def is_long_lane(pytestconfig):
    return pytestconfig.option.markexpr != DEFAULT_LANE


@pytest.fixture(params=[pytest.param(False, id="some"), pytest.param(True, id="all", marks=pytest.mark.long)])
def is_exhaustive(request):
    """False in the default lane, and True in the long one: whether to try all places where a run may resume."""
    return request.param
