"""Reading of configuration files, for every floor above."""
