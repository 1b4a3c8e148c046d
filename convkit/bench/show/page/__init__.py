"""The parts of the page that `convkit report` writes; `..report` puts them together."""
