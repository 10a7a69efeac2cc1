"""`python -m common.teachers` itself."""

from common.teachers import __main__ as module
from tests.commands import fail_in_one_line


def test_without_docstrings_it_starts_all_the_same(capsys, monkeypatch):
    """As with `python -OO`."""
    arguments = (module.CheckArguments, module.CacheArguments, module.ChooseArguments, module.ImportArguments)
    for documented in (module, *arguments):
        monkeypatch.setattr(documented, "__doc__", None)
    fail_in_one_line(capsys, module.main, "check", "/no/such/teacher", "--teacher-pattern", "(")
