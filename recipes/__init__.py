"""How the models that this repository ships were made."""
