"""Studies of prepared data and of finished runs, and the HTML pages that show them."""
