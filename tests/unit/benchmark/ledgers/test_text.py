"""The text that calibrates the demo's model: its own words, of no problem that is measured."""

from benchmark.ledgers import text
from benchmark.ledgers.evaluate import problems_of
from sgl_dynts.demo import ledger


def test_ledgers_of_the_training_split_in_words_of_the_model(capsys):
    text.main(["--num-problems", "2", "--steps", "10"])
    lines = capsys.readouterr().out.splitlines()
    held_out = {problem.prompt for problem in problems_of("test", 2, 10)}
    assert len(lines) == 2
    for line in lines:
        assert ledger.THINK in line.split()
        assert ledger.Vocabulary().encode(line)
        assert line.split(ledger.THINK)[0].strip() not in held_out
