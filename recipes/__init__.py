"""How what ships with the package was made. Nothing here is installed."""
