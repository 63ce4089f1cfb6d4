"""Top floor: studies and figures."""
