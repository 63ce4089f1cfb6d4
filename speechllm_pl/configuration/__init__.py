"""Configuration files, as every floor above reads them."""
