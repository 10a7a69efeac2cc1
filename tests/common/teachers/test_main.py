"""`python -m common.teachers` itself."""

from tests.commands import python


def test_without_docstrings_it_starts_all_the_same():
    done = python("-OO", "-m", "common.teachers", "check", "/no/such/teacher", "--teacher-pattern", "(")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
