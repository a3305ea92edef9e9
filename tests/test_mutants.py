"""Mutants are run by hand, and must not come apart from the code meanwhile."""

from tests.mutants import EXECUTION, MUTANTS, ROOT, TESTS


def test_every_mutant_changes_one_place_that_is_tested():
    for mutant in MUTANTS:
        code = (ROOT / EXECUTION / mutant.file).read_text()
        assert code.count(mutant.old) == 1, mutant.what
        compile(code.replace(mutant.old, mutant.new), mutant.file, "exec")
        assert (ROOT / TESTS / f"test_{mutant.tests}.py").exists(), mutant.what
