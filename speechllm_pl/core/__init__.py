"""Ground floor: pure functions and values. Knows no torch module, file format or trainer."""
