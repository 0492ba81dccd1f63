"""A missing package is reported with the command that installs it."""

import sys

import pytest

from pave.utils.optional import MissingExtraError, require


def test_an_installed_package_is_returned():
    assert require("json.decoder", extra="x", purpose="Reading") is sys.modules["json.decoder"]


def test_a_missing_package_names_the_extra_and_the_purpose():
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package_here.part", extra="serve", purpose="Serving over HTTP")
    assert str(caught.value) == (
        "Serving over HTTP needs the package 'no_such_package_here', which is not installed; "
        "run in a clone of pave: pip install '.[serve]'"
    )


def test_a_missing_import_inside_an_installed_package_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_inside.py").write_text("import something_else_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_else_that_is_missing") as caught:
        require("broken_inside", extra="serve", purpose="Serving")
    assert not isinstance(caught.value, MissingExtraError)
