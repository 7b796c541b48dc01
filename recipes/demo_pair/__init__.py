"""The recipe of the demo pair: a written world -> text and chats -> models -> SAEs -> the package's assets."""
