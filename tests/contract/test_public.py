"""What is public: the names of ``import reducr`` and of four modules, each on a reference page."""

import importlib
import re
from pathlib import Path

import pytest

import reducr

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGES = {"lightning": "integrations.md", "hugging_face": "integrations.md", "streaming": "streaming.md"}


def documented(page, prefix):
    return re.findall(rf"^::: {re.escape(prefix)}\.(\w+)$", (REFERENCE / page).read_text(), flags=re.MULTILINE)


def test_the_reference_page_is_the_public_interface():
    names = documented("reducr.md", "reducr")
    assert sorted(names) == sorted(reducr.__all__)
    assert len(set(names)) == len(names)
    assert all(hasattr(reducr, name) for name in names)


def test_every_public_object_has_a_docstring():
    for name in set(reducr.__all__) - {"SELECTORS"}:
        assert (getattr(reducr, name).__doc__ or "").strip(), name


@pytest.mark.parametrize("module", ["functional", *PAGES])
def test_public_modules_say_what_is_public(module):
    public = importlib.import_module(f"reducr.{module}")
    assert public.__all__
    assert all(hasattr(public, name) for name in public.__all__)


@pytest.mark.parametrize("module", PAGES)
def test_what_users_need_of_a_public_module_is_on_its_page(module):
    names = documented(PAGES[module], f"reducr.{module}")
    assert names
    assert set(names) <= set(importlib.import_module(f"reducr.{module}").__all__)
