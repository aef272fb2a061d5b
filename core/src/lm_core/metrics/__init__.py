"""How evaluation is scored."""
