"""HTML pages about a run and about prepared data: charts, templates, style sheet."""
