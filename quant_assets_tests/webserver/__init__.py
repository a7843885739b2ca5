"""The UI's webserver."""
