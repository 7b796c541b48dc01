"""What goes wrong, as an object."""

import pickle

from sae_transfer.errors import UserError


def test_an_error_comes_back_from_another_process() -> None:
    """A worker's mistake reaches its caller whole: code, what, what next, and the one line."""
    error = UserError("E-PATH", "no file x", "give one")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.what, copy.then, str(copy)) == (error.code, error.what, error.then, str(error))
