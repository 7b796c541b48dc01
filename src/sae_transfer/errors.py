"""What went wrong: the one exception that a user is meant to read, and its codes."""

CODES: dict[str, str] = {
    "E-OPTION": "an option is misspelt, missing or has a value that it can't take",
    "E-SPEC": "what was asked contradicts itself: a name twice, nothing to measure, an unknown name",
    "E-PATH": "a file or folder is missing or is not of the kind that is needed",
    "E-HUB": "the Hugging Face Hub could not be reached or refused",
    "E-WANDB": "a W&B artifact could not be had",
    "E-MODEL": "a model can't be read, can't be cut, or does not work as its config says",
    "E-SAE": "an SAE can't be read or is not what its config says",
    "E-PICKLE": "a checkpoint is a pickle, and --allow-pickle is not given",
    "E-WIDTH": "an SAE's width is not the model's, or two models differ in width",
    "E-LAYER": "a layer, an SAE's or one that was asked for, does not exist in the model",
    "E-HOOK": "a hook point is not supported or contradicts hook_layer",
    "E-NAN": "weights or activations are not finite",
    "E-DATA": "a data file can't be read as what it was given as",
    "E-TOKEN": "a token is outside a model's vocabulary",
    "E-TOKENIZER": "the models' tokenizers disagree, or one is needed and missing",
    "E-TEMPLATE": "a chat template can't be used with this tokenizer or these chats",
    "E-RUN": "a run directory is of another run, of another schema, in use or damaged",
}

ELSEWHERE = "give another -o"
"""What to do next where a place to write to is taken. Who has no -o says it otherwise."""


class UserError(Exception):
    """A mistake that its message lets the user mend; the command line prints it as one line and exits with 2."""

    def __init__(self, code: str, what: str, then: str = "") -> None:
        assert code in CODES, code
        self.code = code
        self.what = what
        self.then = then
        super().__init__(code, what, then)

    def __str__(self) -> str:
        text = f"{self.what}: {self.then}" if self.then else self.what
        return printable(f"{text} [{self.code}]")


def printable(text: str) -> str:
    """One line that can't steer a terminal: white space becomes a space, any other unprintable character its escape."""
    return visible(" ".join(text.split()))


def visible(text: str) -> str:
    """The same with every space as it is, and a line break as its escape: what a token is may be its white space."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
